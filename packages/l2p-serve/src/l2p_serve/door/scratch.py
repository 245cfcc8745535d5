"""A folder for what a session leaves on the disk: it is gone at the end, whatever ends the server; what
kill -9 left behind goes at the next start."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from l2p_run.folder import try_lock

PREFIX = "l2p-serve-"
_LOCK = ".lock"
_STARTING = 60  # s that a server may take from creating its folder to locking it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder that only this user can read; Gradio's copies and uploads and Python's temporary
    files lie in it, too.

    Enter it before Gradio is imported, which reads where its files go only once.
    """
    remove_left_behind()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    before, environment = tempfile.tempdir, dict(os.environ)
    try:
        with try_lock(folder / _LOCK):
            os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
            os.environ["TMPDIR"] = str(folder)  # libraries in C leave files there, too
            tempfile.tempdir = str(folder)
            yield folder
    finally:
        tempfile.tempdir = before
        for name in ("GRADIO_TEMP_DIR", "TMPDIR"):
            os.environ.pop(name, None)
            if name in environment:
                os.environ[name] = environment[name]
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_behind() -> None:
    """Remove the folders of this user's servers that are no longer alive: their lock is free."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            state = folder.lstat()
            ours = folder.is_dir() and not folder.is_symlink() and state.st_uid == os.getuid()
            begun = not (folder / _LOCK).is_file() and time.time() - state.st_mtime < _STARTING
            if not ours or begun:
                continue
            with try_lock(folder / _LOCK) as dead:
                if dead:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another server's start removes it, too
            continue
