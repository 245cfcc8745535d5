"""Pictures to fit new ends to, opened as people see them.

This package stands alone, so this is its own small reader; tests hold it to the one that the other packages
share, picture for picture.
"""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from l2p_arch.errors import ArchError

MAX_PIXELS = 1 << 27
_PILLOWS_BOUND = (1 << 30) // 4 // 3
# Decoders that work in this process; Pillow would start other programs for EPS and WMF.
_FORMATS = "PNG JPEG MPO WEBP AVIF GIF BMP TIFF JPEG2000 PPM TGA ICO QOI"
_TURNS = (None, 0, 3, 1, 5, 4, 6, 2)  # Image.Transpose of EXIF's orientations 1 to 8
_ORIENTATION, _PHOTOMETRIC = 274, 262  # tags of EXIF and TIFF
_SAME = 3  # of 255: a profile that moves no colour further is that of sRGB


def read_picture(path: Path) -> Image.Image:
    """Return the picture of a file, mode RGB: upright, 8-bit sRGB, transparency on white, the first frame.

    Raises:
        ArchError: it cannot be read, or is no whole picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArchError(f"{path} cannot be read: {error.strerror}") from error
    return decode_picture(content, str(path))


def decode_picture(content: bytes, name: str) -> Image.Image:
    """As `read_picture`, of a file's bytes; `name` is what errors call it."""
    Image.init()
    if Image.MAX_IMAGE_PIXELS == _PILLOWS_BOUND:  # it would warn of a picture of 10K
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(
            BytesIO(content), formats=[one for one in _FORMATS.split() if one in Image.OPEN]
        ) as opened:
            return _seen(opened)
    except ArchError as error:
        raise ArchError(f"{name} cannot be read as a picture: {error}") from None
    except Exception as error:  # decoders raise whatever they stumble over
        said = " ".join(str(error).split())[:120]
        raise ArchError(f"{name} cannot be read as a picture ({said}); remove or replace it") from error


def _seen(image: Any) -> Image.Image:
    packed = image.tile[0][3] if image.tile else ""
    raw_mode = str(packed[0] if isinstance(packed, tuple) else packed)
    if image.width * image.height > MAX_PIXELS:
        raise ArchError(f"it has {image.width} x {image.height} px, at most {MAX_PIXELS:,} are read")
    image.load()
    profile, key = image.info.get("icc_profile"), image.info.get("transparency")
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing
        turn = 1
    alpha = None
    if image.mode in ("P", "PA"):
        transparent = image.mode == "PA" or key is not None or image.palette.mode == "RGBA"
        image = image.convert("RGBA" if transparent else "RGB")
    elif image.mode in ("1", "L", "RGB") or image.mode.startswith(("I", "F")):
        if key is not None:
            values = np.asarray(image.convert("L") if image.mode == "1" else image)
            hidden = (values == _stored(key, raw_mode)).reshape(image.height, image.width, -1).all(axis=2)
            alpha = Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8))
        if image.mode.startswith(("I", "F")):
            image = Image.fromarray(_eight_bits(image))
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image = _in_srgb(image, profile)
    if alpha is not None:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        image = white
    turned = _TURNS[turn - 1] if turn in range(2, 9) else None
    return image.copy() if turned is None else image.transpose(Image.Transpose(turned))


def _stored(key: Any, raw_mode: str) -> Any:
    """Return the transparent colour in 8 bits: PNG notes it in the file's own depth."""
    if ";16" in raw_mode and isinstance(key, tuple):
        return np.asarray(key) >> 8
    return np.asarray(key) * {"L;2": 85, "L;4": 17}.get(raw_mode, 1)


def _eight_bits(image: Any) -> Any:
    """Return grey values of more than 8 bits, scaled and never clipped."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise ArchError("it holds NaN or infinity; remove or replace it")
    sixteen = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
    if sixteen:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 1.0 if image.mode == "F" and high <= 1 else 255.0 if high <= 255 else 65535.0
    share = (values - low) / (max(high, low + 1) - low)
    white_is_0 = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    return np.round((1 - share if white_is_0 else share) * 255).astype(np.uint8)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return RGB, by the picture's own colour profile where it has one that fits."""
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _transformed(image, ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB"))
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else None
        if source and source.profile.xcolor_space.strip() == {"L": "GRAY"}.get(image.mode, image.mode):
            transform = ImageCms.buildTransform(source, _srgb(), image.mode, "RGB")
            if image.mode == "CMYK" or not _is_srgb(transform, image.mode):
                return _transformed(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass  # a damaged profile says nothing
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_srgb(transform: Any, mode: str) -> bool:
    """Return whether a transform to sRGB leaves every colour of a grid where it is."""
    ramp = np.linspace(0, 255, 256 if mode == "L" else 9).round().astype(np.uint8)
    grid = ramp[None] if mode == "L" else np.stack(np.meshgrid(ramp, ramp, ramp), -1).reshape(1, -1, 3)
    before = Image.fromarray(grid)
    after = _transformed(before, transform)
    return bool(np.abs(np.asarray(after, int) - np.asarray(before.convert("RGB"), int)).max() <= _SAME)


def _transformed(image: Image.Image, transform: Any) -> Image.Image:
    changed = ImageCms.applyTransform(image, transform)
    assert changed is not None  # not in place
    return changed


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")
