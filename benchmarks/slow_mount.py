"""A folder mounted a second time through FUSE, where every read waits: a network file system in miniature.

The kernel's own protocol on /dev/fuse (Linux, root), read-only, without libfuse. A process of its own serves
it, because a reader that waits for a page holds its interpreter's lock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 2, 3, 14, 15, 17, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 26, 27, 28, 29, 34, 36, 38, 42
ASYNC_READ, PARALLEL_DIROPS = 1 << 0, 1 << 18
REQUEST = 128 << 10  # bytes of a read at most: the kernel's own read-ahead
READ_ONLY, NO_SUID, NO_DEVICES, DETACH = 1, 2, 4, 2
_HEADER, _ANSWER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
_VALID = 3600  # s that names and sizes stay in the kernel


@contextmanager
def slow_mount(folder: Path, at: Path, *, latency: float, bandwidth: float, in_flight: int) -> Iterator[Path]:
    """Mount `folder` at `at` inside the block, with nothing of it in the page cache.

    Args:
        latency: s before each request is answered.
        bandwidth: bytes a second of one request, after that.
        in_flight: requests that are answered at a time.

    Raises:
        OSError: not Linux, not root, or no /dev/fuse.
    """
    at.mkdir(parents=True, exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,max_read={REQUEST}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"slow", bytes(at), b"fuse", READ_ONLY | NO_SUID | NO_DEVICES, options):
        os.close(device)
        raise OSError(ctypes.get_errno(), "cannot mount through FUSE; be root on Linux")
    command = [
        sys.executable,
        __file__,
        str(device),
        str(folder),
        str(latency),
        str(bandwidth),
        str(in_flight),
    ]
    server = subprocess.Popen(command, pass_fds=[device])
    os.close(device)
    try:
        yield at
    finally:
        libc.umount2(bytes(at), DETACH)
        server.terminate()
        server.wait()


class Server:
    """Answers the kernel; a node's number is its place in `paths`."""

    def __init__(self, device: int, folder: str, latency: float, bandwidth: float) -> None:
        self.device, self.latency, self.bandwidth = device, latency, bandwidth
        self.paths: list[str] = ["", folder]  # the root is node 1
        self.numbers = {folder: 1}
        self.lock = threading.Lock()

    def serve(self) -> None:
        """Answer until the folder is unmounted."""
        while True:
            try:
                message = os.read(self.device, REQUEST + 4096)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.EBADF):
                    return
                continue
            size, code, unique, node, *_ = _HEADER.unpack_from(message)
            if code in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            failed = 0
            try:
                answer = self.answer(code, node, message[_HEADER.size : size])
            except OSError as error:
                failed, answer = error.errno or errno.EIO, b""
            os.write(self.device, _ANSWER.pack(_ANSWER.size + len(answer), -failed, unique) + answer)
            if code == DESTROY:
                return

    def answer(self, code: int, node: int, body: bytes) -> bytes:
        """What follows the header of an answer."""
        if code == INIT:
            _, _, ahead, flags = struct.unpack_from("<IIII", body)
            flags &= ASYNC_READ | PARALLEL_DIROPS
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, ahead, flags, 64, 48, REQUEST, 1, 32, 0, 0)
        path = self.paths[node]
        if code == LOOKUP:
            return self.entry(os.path.join(path, os.fsdecode(body.rstrip(b"\0"))))
        if code == GETATTR:
            return struct.pack("<QII", _VALID, 0, 0) + self.attributes(path, node)
        if code in (OPEN, OPENDIR):
            handle = os.open(path, os.O_RDONLY)
            return struct.pack("<QII", handle, 0, 0)
        if code == READ:
            handle, offset, count = struct.unpack_from("<QQI", body)
            time.sleep(self.latency + count / self.bandwidth)
            return os.pread(handle, count, offset)
        if code == READDIR:
            _, offset, count = struct.unpack_from("<QQI", body)
            return self.names(path, offset, count)
        if code in (RELEASE, RELEASEDIR):
            os.close(struct.unpack_from("<Q", body)[0])
            return b""
        if code == STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if code in (FLUSH, ACCESS, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not needed to read")

    def entry(self, path: str) -> bytes:
        """A name that was looked up."""
        os.lstat(path)
        with self.lock:
            number = self.numbers.setdefault(path, len(self.paths))
            if number == len(self.paths):
                self.paths.append(path)
        return struct.pack("<QQQQII", number, 0, _VALID, _VALID, 0, 0) + self.attributes(path, number)

    def attributes(self, path: str, number: int) -> bytes:
        """A node's size, times and mode."""
        about = os.stat(path)
        seconds = (int(about.st_atime), int(about.st_mtime), int(about.st_ctime))
        numbers = (about.st_mode, about.st_nlink, 0, 0, 0, 4096, 0)
        return struct.pack(
            "<QQQQQQIII7I", number, about.st_size, about.st_blocks, *seconds, 0, 0, 0, *numbers
        )

    def names(self, path: str, offset: int, room: int) -> bytes:
        """Entries of a folder from the `offset`-th on, as many as there is room for."""
        found = b""
        for position, name in enumerate(sorted(os.listdir(path))[offset:], start=offset + 1):
            raw = os.fsencode(name)
            kind = stat.S_IFMT(os.stat(os.path.join(path, name)).st_mode) >> 12
            one = struct.pack("<QQII", position + 10**6, position, len(raw), kind) + raw
            one += b"\0" * (-len(one) % 8)
            if len(found) + len(one) > room:
                break
            found += one
        return found


def main() -> None:
    """Serve as `slow_mount` asks."""
    device, folder, latency, bandwidth, in_flight = sys.argv[1:]
    server = Server(int(device), folder, float(latency), float(bandwidth))
    threads = [threading.Thread(target=server.serve, daemon=True) for _ in range(int(in_flight))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
