"""Pictures of every kind, each with what a viewer shows of it: for every reader of pictures here.

The fixture `picture_zoo` of tests/conftest.py hands them out.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 24


@dataclass(frozen=True)
class Animal:
    """A picture's file and what people see of it."""

    name: str
    content: bytes
    seen: np.ndarray  # uint8 (H, W, 3)
    tolerance: int = 0  # of 255
    plain: bool = False  # its bytes show it as it is


def zoo() -> list[Animal]:
    """All of them."""
    makers: list[Callable[[], list[Animal]]] = [
        _plain, _turned, _transparent, _keyed, _deep, _inks, _palettes, _moving, _profiles,
    ]  # fmt: skip
    return [animal for make in makers for animal in make()]


def colours() -> np.ndarray:
    """A smooth picture whose four corners differ."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green, blue = 40 + 5 * x, 30 + 8 * y, 230 - 3 * x - 2 * y
    return np.stack([red, green, blue], -1).astype(np.uint8)


def greys() -> np.ndarray:
    """A ramp from black to white along both sides."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((x + y) / (WIDTH + HEIGHT - 2) * 255).round().astype(np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def png(values: np.ndarray, depth: int, kind: int, **chunks: bytes) -> bytes:
    """A PNG written by hand: Pillow writes no 16-bit colours and no 2- and 4-bit greys.

    Args:
        values: (H, W) or (H, W, C).
        kind: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA.
        chunks: further ones before the pixels, such as tRNS.
    """
    height, width = values.shape[:2]
    if depth == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _plain() -> list[Animal]:
    image, grey = Image.fromarray(colours()), Image.fromarray(greys())
    opaque = image.convert("RGBA")
    return [
        Animal("rgb.png", saved(image, "PNG"), colours(), plain=True),
        Animal("rgb.jpg", saved(image, "JPEG", quality=95, subsampling=0), colours(), 8, plain=True),
        Animal("rgb.webp", saved(image, "WEBP", lossless=True), colours(), plain=True),
        Animal("grey.png", saved(grey, "PNG"), three(greys()), plain=True),
        Animal("grey.jpg", saved(grey, "JPEG", quality=95), three(greys()), 8, plain=True),
        Animal("opaque.png", saved(opaque, "PNG"), colours(), plain=True),
        Animal("rgb.bmp", saved(image, "BMP"), colours()),
        Animal("rgb.tif", saved(image, "TIFF"), colours()),
        Animal("rgb.jp2", saved(image, "JPEG2000"), colours(), 1),
        Animal("rgb.ppm", saved(image, "PPM"), colours()),
        Animal("rgb.tga", saved(image, "TGA"), colours()),
        Animal("rgb.qoi", saved(image, "QOI"), colours()),
        Animal("rgb.avif", saved(image, "AVIF", quality=100, subsampling="4:4:4"), colours(), 6),
    ]


def _turned() -> list[Animal]:
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    animals = []
    for number, turn in turns.items():
        exif = Image.Exif()
        exif[274] = number
        for format, options, tolerance in (
            ("JPEG", {"quality": 95, "subsampling": 0}, 8),
            ("PNG", {}, 0),
            ("WEBP", {"lossless": True}, 0),
            ("TIFF", {}, 0),
            ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 6),
        ):
            content = saved(Image.fromarray(colours()), format, exif=exif, **options)
            plain = number == 1 and format not in ("TIFF", "AVIF")
            name = f"turned-{number}.{format.lower()}"
            animals.append(Animal(name, content, turn(colours()), tolerance, plain=plain))
    nonsense = Image.Exif()
    nonsense[274] = 77
    content = saved(Image.fromarray(colours()), "PNG", exif=nonsense)
    return [*animals, Animal("turned-77.png", content, colours(), plain=True)]


def _on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return (colour * share + 255 * (1 - share)).round().astype(np.uint8)


def _transparent() -> list[Animal]:
    alpha = greys()[:, ::-1].copy()
    rgba = Image.fromarray(np.dstack([colours(), alpha]))
    la = Image.merge("LA", [Image.fromarray(greys()), Image.fromarray(alpha)])
    magenta = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 255, 0))
    seen, white = _on_white(colours(), alpha), np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    small = rgba.resize((32, 32))
    icon = np.asarray(small)
    deep = np.dstack([colours(), alpha]).astype(np.uint16) * 257
    return [
        Animal("rgba.png", saved(rgba, "PNG"), seen, 1),
        Animal("rgba.webp", saved(rgba, "WEBP", lossless=True, exact=True), seen, 1),
        Animal("rgba.tif", saved(rgba, "TIFF"), seen, 1),
        Animal("rgba.tga", saved(rgba, "TGA"), seen, 1),
        Animal("la.png", saved(la, "PNG"), _on_white(three(greys()), alpha), 1),
        Animal("magenta.png", saved(magenta, "PNG"), white),
        Animal("turned-rgba.png", saved(rgba, "PNG", exif=exif), np.rot90(seen, -1), 1),
        Animal("rgba16.png", png(deep, 16, 6), seen, 1),
        Animal("la16.png", png(deep[..., 2:], 16, 4), _on_white(three(colours()[..., 2]), alpha), 1),
        Animal("icon.ico", saved(small, "ICO", sizes=[(32, 32)]), _on_white(icon[..., :3], icon[..., 3]), 1),
    ]


def _keyed() -> list[Animal]:
    animals = []
    for depth in (1, 2, 4, 8, 16):
        top = 2**depth - 1
        values = (greys().astype(np.uint32) * top // 255).astype(np.uint16)
        shown = (values.astype(float) / top * 255).round().astype(np.uint8)
        for key in (0, top, values[3, 7]):
            seen = three(np.where(values == key, 255, shown).astype(np.uint8))
            content = png(values, depth, 0, tRNS=struct.pack(">H", key))
            animals.append(Animal(f"key-{key}-of-{depth}-bit.png", content, seen, int(depth == 16)))
    rgb = colours()
    rgb[2:9, 3:11] = (9, 200, 33)
    seen = rgb.copy()
    seen[2:9, 3:11] = 255
    deep = rgb.astype(np.uint16) * 257
    key = struct.pack(">HHH", 9, 200, 33)
    animals.append(Animal("key-rgb.png", png(rgb, 8, 2, tRNS=key), seen))
    key = struct.pack(">HHH", 9 * 257, 200 * 257, 33 * 257)
    animals.append(Animal("key-rgb16.png", png(deep, 16, 2, tRNS=key), seen, 1))
    return animals


def _deep() -> list[Animal]:
    ramp = greys().astype(np.uint16) * 257
    seen = three(greys())
    dark = (ramp // 300).astype(np.uint16)  # a dark picture stays dark
    pgm = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + ramp.astype(">u2").tobytes()
    floats = greys().astype(np.float32)
    signed = floats * (10 / 255) - 3
    return [
        Animal("grey16.png", png(ramp, 16, 0), seen),
        Animal("dark16.png", png(dark, 16, 0), three((dark / 257).round().astype(np.uint8))),
        Animal("rgb16.png", png(colours().astype(np.uint16) * 257, 16, 2), colours()),
        Animal("grey16.tif", saved(Image.fromarray(ramp), "TIFF"), seen),
        Animal("grey16b.tif", _tiff(ramp.astype(">u2"), 1, b"MM\0*"), seen),
        Animal("white-is-0.tif", _tiff((65535 - ramp).astype("<u2"), 0, b"II*\0"), seen),
        Animal("grey16.pgm", pgm, seen),
        Animal("grey16.jp2", saved(Image.fromarray(ramp), "JPEG2000"), seen, 1),
        Animal("int32-of-16-bit.tif", saved(Image.fromarray(ramp.astype(np.int32)), "TIFF"), seen),
        Animal("int32-of-8-bit.tif", saved(Image.fromarray(greys().astype(np.int32)), "TIFF"), seen),
        Animal("int32.tif", saved(Image.fromarray(greys().astype(np.int32) * 4000 - 9000), "TIFF"), seen),
        Animal("float-1.tif", saved(Image.fromarray(floats / 255), "TIFF"), seen),
        Animal("float-255.tif", saved(Image.fromarray(floats), "TIFF"), seen),
        Animal("float-65535.tif", saved(Image.fromarray(floats * 257), "TIFF"), seen),
        Animal("float-signed.tif", saved(Image.fromarray(signed), "TIFF"), seen),
    ]


def _tiff(values: np.ndarray, photometric: int, start: bytes) -> bytes:
    """A grey TIFF written by hand, little- or big-endian."""
    order = ">" if start.startswith(b"MM") else "<"
    height, width = values.shape
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, values.itemsize * 8), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, values.nbytes),
    ]  # fmt: skip
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(
            f"{order}HH" if kind == 3 else f"{order}I", *((value, 0) if kind == 3 else (value,))
        )
        table += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    return start + struct.pack(f"{order}I", 8 + values.nbytes) + values.tobytes() + table + bytes(4)


def _inks() -> list[Animal]:
    cmyk = Image.fromarray(colours()).convert("CMYK")
    ycc = np.asarray(Image.fromarray(colours()).convert("YCbCr"))
    # A YCCK file is one of four channels whose Adobe mark says that the first three are YCbCr.
    four = Image.fromarray(np.dstack([ycc, np.zeros((HEIGHT, WIDTH), np.uint8)]), "CMYK")
    ycck = bytearray(saved(four, "JPEG", quality=100, subsampling=0))
    mark = ycck.index(b"Adobe")
    ycck[mark + 11] = 2
    return [
        Animal("cmyk.jpg", saved(cmyk, "JPEG", quality=100, subsampling=0), colours(), 6),
        Animal("ycck.jpg", bytes(ycck), colours(), 6),
        Animal("cmyk.tif", saved(cmyk, "TIFF"), colours()),
        Animal(
            "jpeg.tif",
            saved(Image.fromarray(colours()), "TIFF", compression="jpeg", quality=95),
            colours(),
            24,
        ),
        Animal("lab.tif", _lab(), colours(), 18),
    ]


def _lab() -> bytes:
    from PIL import ImageCms

    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(colours()), srgb, lab, outputMode="LAB")
    assert image is not None
    return saved(image, "TIFF")


def _palettes() -> list[Animal]:
    few = Image.fromarray(colours()).quantize(11)
    shown = np.asarray(few.convert("RGB"))
    numbers = np.asarray(few)
    alphas = bytes((index * 40) % 256 for index in range(11))
    table = np.frombuffer(alphas, np.uint8)[numbers]
    bits = Image.fromarray(greys() > 99)
    black_white = three(np.where(greys() > 99, 255, 0).astype(np.uint8))
    return [
        Animal("palette.png", saved(few, "PNG"), shown, plain=True),
        Animal("palette-one.png", saved(few, "PNG", transparency=4),
               np.where((numbers == 4)[..., None], 255, shown).astype(np.uint8)),
        Animal("palette-many.png", saved(few, "PNG", transparency=alphas), _on_white(shown, table), 1),
        Animal("palette.gif", saved(few, "GIF"), shown),
        Animal("palette-one.gif", saved(few, "GIF", transparency=3),
               np.where((numbers == 3)[..., None], 255, shown).astype(np.uint8)),
        Animal("bits.png", saved(bits, "PNG"), black_white, plain=True),
        Animal("bits.tif", saved(bits, "TIFF", compression="group4"), black_white),
    ]  # fmt: skip


def _moving() -> list[Animal]:
    frames = [Image.fromarray(np.roll(colours(), 5 * number, 1)) for number in range(4)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 80}
    first = np.asarray(frames[0].quantize(256).convert("RGB"))
    few = [frame.quantize(256) for frame in frames]
    return [
        Animal("moving.png", saved(frames[0], "PNG", **more), colours()),
        Animal("moving.webp", saved(frames[0], "WEBP", lossless=True, **more), colours()),
        Animal("moving.gif", saved(few[0], "GIF", save_all=True, append_images=few[1:]), first),
        Animal("pages.tif", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), colours()),
        Animal(
            "moving.avif", saved(frames[0], "AVIF", quality=100, subsampling="4:4:4", **more), colours(), 6
        ),
    ]


def profile(matrix: np.ndarray, gamma: float) -> bytes:
    """An ICC profile of an RGB space: columns of `matrix` are its primaries' XYZ (D50), a power as curve."""

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"of a test"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(1 + 78)
    parts = {
        b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1, 0.8249)),
        b"rXYZ": xyz(matrix[:, 0]), b"gXYZ": xyz(matrix[:, 1]), b"bXYZ": xyz(matrix[:, 2]),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, body, start = b"", b"", 128 + 4 + 12 * len(parts)
    for name, content in parts.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += (
        bytes(12)
        + b"acsp"
        + bytes(28)
        + b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1, 0.8249))
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


_SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
_WIDE = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])


def _profiles() -> list[Animal]:
    from PIL import ImageCms

    linear = (colours() / 255.0) ** 1.8
    mixed = np.clip(linear @ (np.linalg.inv(_SRGB) @ _WIDE).T, 0, 1)
    coded = np.where(mixed <= 0.0031308, mixed * 12.92, 1.055 * mixed ** (1 / 2.4) - 0.055)
    seen = (coded * 255).round().astype(np.uint8)
    image, wide = Image.fromarray(colours()), profile(_WIDE, 1.8)
    nonsense = saved(image, "PNG", icc_profile=b"no profile" * 30)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        Animal("wide.png", saved(image, "PNG", icc_profile=wide), seen, 3),
        Animal("wide.jpg", saved(image, "JPEG", quality=100, subsampling=0, icc_profile=wide), seen, 12),
        Animal("srgb.png", saved(image, "PNG", icc_profile=srgb), colours(), plain=True),
        Animal("srgb.jpg", saved(image, "JPEG", quality=95, icc_profile=srgb), colours(), 30, plain=True),
        Animal("damaged-profile.png", nonsense, colours(), plain=True),
        Animal("profile-of-colours-on-grey.png", saved(Image.fromarray(greys()), "PNG", icc_profile=wide),
               three(greys()), plain=True),
    ]  # fmt: skip
