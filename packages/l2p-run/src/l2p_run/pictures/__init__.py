"""One function that opens a picture as people see it; every reader of pictures here goes through it.

A file and what a viewer shows of it differ: cameras note which way is up, transparent pixels keep colours
that nobody sees, and scans have more than eight bits. `read_picture` gives the upright picture in eight bits
of sRGB, on white where it is transparent, and says what it had to change (`l2p_run.pictures.pixels`).
"""

import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, features

from l2p_run.errors import UserError, one_line
from l2p_run.pictures.pixels import Refused, colour_of, seen
from l2p_run.places import is_file, read_bytes

MAX_PIXELS = 1 << 27
"""134 million: a square of 11,585 px. What claims to be larger is refused before it is decoded."""
SUFFIXES = frozenset(
    f".{name}"
    for names in (
        ("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "heic", "heif", "hif", "jxl", "gif"),
        ("bmp", "dib", "tif", "tiff", "jp2", "j2k", "jpx", "jpf", "j2c", "ppm", "pgm", "pbm", "pnm", "pfm"),
        ("tga", "ico", "icns", "psd", "qoi", "sgi", "pcx", "svg", "eps", "exr", "hdr"),
        ("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "pef", "srw", "raw"),
    )
    for name in names
)
"""Names that promise a picture, also of kinds that are not read here: those are failures, and not absent."""
_PILLOWS_BOUND = (1 << 30) // 4 // 3
# Kinds that a library decodes in this process; Pillow would start other programs for EPS and WMF.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000"),
    *("PPM", "TGA", "ICO", "ICNS", "PSD", "QOI", "SGI", "PCX", "HEIF", "JXL"),
)
_STARTS = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM"),
    *(b"II*\0", b"MM\0*", b"qoif", b"8BPS", b"icns"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\x00")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as people see it, and how far its file is from that.

    Attributes:
        image: upright, mode RGB.
        format: of the file: "PNG", "JPEG", "HEIF", ...
        changes: what was done beside decoding, such as "turned upright".
    """

    image: Image.Image
    format: str
    changes: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether any decoder of PNG, JPEG and WebP shows the same from the file's own bytes."""
        return not self.changes and self.format in ("PNG", "JPEG", "MPO", "WEBP")


def open_picture(source: Path | bytes, *, background: str = "white", name: str = "") -> Image.Image:
    """Return the image of `read_picture`: upright, mode RGB."""
    return read_picture(source, background=background, name=name).image


def read_picture(
    source: Path | bytes, *, background: str = "white", max_pixels: int = MAX_PIXELS, name: str = ""
) -> Picture:
    """Open a picture as people see it: upright, in 8-bit sRGB, on a background, the first frame.

    Values of more than 8 bits are scaled and never clipped: 16-bit ones from 0 to 65535, longer ones from 0
    to the least of 1 (fractions alone), 255 and 65535 that holds them all, and else from the least to the
    largest there is.

    Args:
        source: a file, here or in a store, or a file's bytes.
        background: what transparent places show: a name or "#rrggbb".
        max_pixels: larger pictures are refused.
        name: what errors call it; default: the path.

    Raises:
        UserError: it is missing, cannot be read, or is no whole picture of a kind that is read here.
    """
    colour = colour_of(background)
    name = name or ("the picture" if isinstance(source, bytes) else str(source))
    content = source if isinstance(source, bytes) else _content(source)
    if cause := _unreadable(content):
        raise UserError(f"{name} is not a readable image: it is {cause}")
    # Pillow warns at 89 million px, and sec. 4.3's pictures of 10K have 105. Who set another bound means it.
    if Image.MAX_IMAGE_PIXELS == _PILLOWS_BOUND:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with Image.open(BytesIO(content), formats=_known_formats()) as opened:
            image, changes = seen(opened, colour, max_pixels)
            return Picture(image=image, format=opened.format or "", changes=changes)
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raise UserError(f"{name} is not a readable image: {_cause(error, content)}") from error


def _content(path: Path) -> bytes:
    """Return the bytes of a file; a pipe or device would never end."""
    if not hasattr(path, "fs") and not is_file(path):
        what = "does not exist"
        if path.exists():
            what = "is a folder" if stat.S_ISDIR(path.stat().st_mode) else "is no regular file"
        raise UserError(f"{path} {what}; give a picture's file")
    return read_bytes(path)


def _known_formats() -> list[str]:
    Image.init()  # else only Pillow's first few are looked for
    return [name for name in _FORMATS if name in Image.OPEN]


def _unreadable(content: bytes) -> str:
    """Return what a file is that is not read here, with the remedy; "" for one to try. Registers the readers
    of HEIC and JPEG XL where they are needed."""
    brands = content[8:64] if content[4:8] == b"ftyp" else b""
    if not content:
        return "empty; copy it again from where it came"
    if b"avif" in brands or b"avis" in brands:
        return "" if features.check("avif") else "an AVIF picture; install Pillow's own wheel (11.3 or later)"
    if any(brand in brands for brand in _HEIF_BRANDS):
        return _registered("pillow_heif", "register_heif_opener", "a HEIC picture", "heic")
    if content.startswith(_JXL_STARTS):
        return _registered("pillow_jxl", None, "a JPEG XL picture", "jxl")
    if content[8:10] == b"CR" or b"crx " in brands or content.startswith(_RAW_STARTS):
        return "a camera's raw file; develop it and save the picture as TIFF, PNG or JPEG"
    if b"<svg" in content[:1024].lower() or content.startswith((b"%!PS", b"%PDF")):
        return "a drawing and no picture of pixels; export it as PNG"
    if content.startswith((b"\x76\x2f\x31\x01", b"#?RADIANCE", b"#?RGBE")):
        return "a picture of open range (HDR) that has no white; save it as PNG or TIFF with 16 bits"
    return ""


def _registered(module: str, register: str | None, what: str, extra: str) -> str:
    """Load the library that teaches Pillow a format; "" if that worked."""
    from importlib import import_module

    try:
        library = import_module(module)
    except ImportError:
        package = {"pillow_jxl": "pillow-jxl-plugin"}.get(module, module.replace("_", "-"))
        return f"{what}, for which {package} is needed: install l2p-run[{extra}], or save it as PNG or JPEG"
    if register:
        getattr(library, register)()
    return ""


def _cause(error: Exception, content: bytes) -> str:
    """Return why a picture could not be opened, and what helps."""
    said = one_line(error, 120)
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"it is far too large ({said}); make it smaller"
    if isinstance(error, MemoryError):
        return "the memory is not enough for it; make it smaller"
    if "text chunks" in said or "MAX_TEXT_CHUNK" in said or "decompressed data too large" in said.lower():
        return "its texts unpack to more than a picture's should; save it without them"
    if isinstance(error, Image.UnidentifiedImageError):
        if not content.startswith((*_STARTS, *_JXL_STARTS)) and content[4:8] not in (b"ftyp", b"jP  "):
            return "it is of no kind that is read here; save it as PNG or JPEG"
        said = "its head cannot be read"
    return f"it is damaged or cut off ({said}); copy it again from where it came, or make it again"
