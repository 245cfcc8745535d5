"""Area `pictures`: files of every kind of picture, damaged, and files that only claim to be one."""

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.case import Case, encoded
from fuzzing.values import damaged

FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "TGA",
    "ICO",
    "JPEG2000",
    "AVIF",
    "PCX",
    "SGI",
    "QOI",
)
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16", "I", "F", "YCbCr")


def pictures(seeds: Path) -> st.SearchStrategy[Case]:
    """Pictures to import, to judge, and to start from."""
    model = ("l2p-generate", "--model", "m", "--steps", "1", "--device", "cpu", "--strength", "0.2", "a")

    def imported(content: bytes) -> Case:
        files = {"in/a.png": encoded(content), "in/a.txt": encoded(b"a circle")}
        return Case(
            area="pictures", command=("l2p-data", "import", "in", "--out", "out", "--json"), files=files
        )

    def judged(content: bytes) -> Case:
        command = ("l2p-evaluate", "patch-grid", "--images", "x=in", "-o", "out", "--json")
        return Case(
            area="pictures", command=command, copies={"in": "pictures"}, files={"in/c.png": encoded(content)}
        )

    def started(content: bytes) -> Case:
        command = (*model, "--image", "a.png", "--height", "16", "--width", "16", "-o", "o.png")
        return Case(
            area="pictures", command=command, copies={"m": "run/model"}, files={"a.png": encoded(content)}
        )

    def masked(content: bytes) -> Case:
        command = (*model, "--image", "b.png", "--mask", "a.png", "-o", "o.png")
        copies = {"m": "run/model", "b.png": "pictures/a.png"}
        return Case(area="pictures", command=command, copies=copies, files={"a.png": encoded(content)})

    files = st.one_of(_file(), _file().flatmap(damaged), _file().flatmap(damaged), _header())
    return st.one_of(
        files.map(imported), files.map(imported), files.map(judged), files.map(started), files.map(masked)
    )


@st.composite
def _file(draw: Any) -> bytes:
    """A picture of some format, mode and size, with tags of its own."""
    from PIL import Image

    form, mode = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(MODES))
    size = draw(st.sampled_from([(16, 16), (1, 1), (64, 48), (1, 300), (17, 33), (300, 2)]))
    # The same noise each time: a case is what was drawn, and nothing else.
    noise = Image.frombytes("RGB", size, random.Random(size[0]).randbytes(3 * size[0] * size[1]))
    picture = noise.convert(_through(mode))
    if mode in ("I;16", "I", "F"):
        picture = Image.new(mode, size, draw(st.integers(0, 60_000)))
    options: dict[str, Any] = {}
    if draw(st.booleans()) and form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 12))
        options["exif"] = exif
    if form in ("GIF", "TIFF", "WEBP", "PNG") and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [picture.rotate(90)]}
    if form == "PNG" and draw(st.booleans()):
        options["icc_profile"] = draw(st.binary(max_size=200))
    buffer = io.BytesIO()
    try:
        picture.save(buffer, form, **options)
    except (OSError, ValueError, KeyError, TypeError, SystemError):  # a pair that does not go together
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _through(mode: str) -> str:
    return "RGB" if mode in ("I;16", "I", "F") else mode


@st.composite
def _header(draw: Any) -> bytes:
    """A PNG that claims some size, depth and kind, with texts that unpack to a lot."""
    sides = st.sampled_from([0, 1, 16, 4096, 20_000, 65_535, 2**31 - 1, 2**32 - 1])
    head = struct.pack(
        ">IIBBBBB",
        draw(sides),
        draw(sides),
        draw(st.sampled_from([1, 2, 4, 8, 16, 0, 3])),
        draw(st.sampled_from([0, 2, 3, 4, 6, 1, 7])),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 2)),
    )
    parts = [_chunk(b"IHDR", head)]
    if draw(st.booleans()):
        unpacked = bytes(draw(st.sampled_from([10, 10**5, 10**7, 8 * 10**7])))
        parts.append(_chunk(b"zTXt", b"l2p\0\0" + zlib.compress(unpacked)))
    if draw(st.booleans()):
        parts.append(_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(draw(st.sampled_from([0, 128, 10**6]))))))
    if draw(st.booleans()):
        parts.append(_chunk(b"tRNS", draw(st.binary(max_size=6))))
    parts.append(_chunk(b"IDAT", zlib.compress(bytes(draw(st.sampled_from([0, 100, 10**6]))))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
