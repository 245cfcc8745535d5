"""Prompts and reference images of a 4K set such as UltraHR-eval4K, in any of the forms such sets come in.

`{file_name, text}`, `{file_name, short_caption, long_caption}` or `{name, prompt}`, as .csv, .jsonl, .json or
.parquet.
"""

import io
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from l2p_run import places
from l2p_run.errors import explained, raised_as
from l2p_run.pictures import SUFFIXES

from l2p_eval.errors import EvalError

_FILES = ("file_name", "name", "image")
_TEXTS = ("text", "prompt", "caption", "long_caption", "short_caption")
_READERS = {
    ".csv": lambda content: pl.read_csv(content, infer_schema=False),
    ".jsonl": pl.read_ndjson,
    ".json": pl.read_json,
    ".parquet": pl.read_parquet,
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", *sorted(SUFFIXES - {".png", ".jpg", ".jpeg", ".webp"}))
"""Names that promise a picture, the usual ones first."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """`names`: file names, with or without suffix; `texts`: their prompts, in the order of the file."""

    names: tuple[str, ...]
    texts: tuple[str, ...]


@raised_as(EvalError)
def read_prompt_set(path: Path, column: str | None = None) -> PromptSet:
    """Read a prompt file.

    Args:
        column: the text column; by default text, prompt, caption, long_caption or short_caption.

    Raises:
        EvalError: missing or broken file, missing columns, an empty row; names the row.
    """
    if not places.is_file(path):
        raise EvalError(f"no prompt file {path}; give a .csv, .jsonl, .json or .parquet with names and texts")
    if path.suffix not in _READERS:
        raise EvalError(f"{path} ends in {path.suffix or 'nothing'}; a prompt file is {', '.join(_READERS)}")
    content = places.read_bytes(path)
    if path.suffix != ".parquet":
        content = places.read_text(path).encode()  # UTF-8, without a byte-order mark
    try:
        frame = _READERS[path.suffix](io.BytesIO(content))
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise EvalError(f"{path} cannot be read (truncated?): {said}") from None
    names = next((name for name in _FILES if name in frame.columns), None)
    texts = column or next((name for name in _TEXTS if name in frame.columns), None)
    if names is None or texts is None or texts not in frame.columns:
        raise EvalError(
            f"{path} has the columns {', '.join(frame.columns)};"
            f" wanted one of {', '.join(_FILES)} and {column or 'one of ' + ', '.join(_TEXTS)}"
        )
    if frame.is_empty():
        raise EvalError(f"{path} has no rows")
    try:
        chosen = frame.select(pl.col(names).cast(pl.String), pl.col(texts).cast(pl.String))
    except pl.exceptions.PolarsError:
        raise EvalError(f"{path}: the columns {names} and {texts} must hold texts") from None
    chosen = chosen.with_row_index("row", 1)
    broken = chosen.filter(
        pl.col(names).is_null() | pl.col(texts).is_null() | (pl.col(texts).str.strip_chars() == "")
    )
    if not broken.is_empty():
        raise EvalError(f"{path}: row {broken['row'][0]} has no name or no text (a truncated file?)")
    return PromptSet(names=tuple(chosen[names]), texts=tuple(chosen[texts]))


def find_images(folder: Path, names: tuple[str, ...] | None = None) -> list[Path]:
    """Return the image files of a folder: those of `names` in their order, or all, in order of their names.

    Hidden files and folders do not count, nor does a `grid` beside a folder `samples` (GenEval's layout).

    Raises:
        EvalError: no such folder, one that may not be listed, no images, one that is missing or named twice.
    """
    if not folder.is_dir():
        raise EvalError(f"no image folder {folder}")
    if names is not None:
        if again := next((name for name, times in Counter(names).items() if times > 1), ""):
            raise EvalError(f"the prompt file names {again!r} more than once; one image would count twice")
        every = [_find(folder, name) for name in names]
        if twice := next((path for path, times in Counter(every).items() if times > 1), None):
            both = [name for name, path in zip(names, every, strict=True) if path == twice]
            raise EvalError(
                f"the prompt file's {both[0]!r} and {both[1]!r} are one image, {twice.name}; "
                "it would count twice"
            )
        return every

    def refuse(error: OSError) -> None:
        raise EvalError(explained(f"cannot list {error.filename or folder}", error)) from None

    found = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # GenEval's generators write a sheet of a prompt's pictures beside the folder that holds them.
        sheets = ("grid",) if "samples" in folders else ()
        found += [
            Path(here, name)
            for name in files
            if Path(name).suffix.lower() in SUFFIXES
            and not name.startswith(".")
            and Path(name).stem not in sheets
        ]
    if not found:
        raise EvalError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES[:4])}, ...)")
    return sorted(found)


def _find(folder: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise EvalError(f"the file name {name[:100]!r} leaves the folder {folder}")
    if not Path(name).name:
        raise EvalError(f"the file name {name!r} names no image; take its row out of the prompt file")
    plain = folder / name
    candidates = [plain, *(plain.with_name(plain.name + suffix) for suffix in IMAGE_SUFFIXES)]
    if plain.suffix.lower() in SUFFIXES:  # saved in another format; the 5 of "v1.5" is no format
        candidates += [plain.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    for candidate in candidates:
        with suppress(OSError, ValueError):  # no file can be called so
            if candidate.is_file():
                return candidate
    raise EvalError(
        f"{folder} has no image of {name[:100]!r}; paint it, or take its row out of the prompt file"
    )
