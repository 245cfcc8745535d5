"""From what Pillow decodes to what people see: depth, transparency, colour space, orientation."""

import math
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor

from l2p_run.errors import UserError

Colour = tuple[int, int, int]
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _SUBFILE, _PHOTOMETRIC, _DNG_VERSION = 274, 254, 262, 50706  # tags of EXIF and TIFF
_ANIMATED = ("PNG", "GIF", "WEBP", "AVIF", "JXL", "TIFF")  # in others, further pictures are no frames
_SAME = 3  # of 255: a profile that moves no colour further is that of sRGB
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class Refused(Exception):
    """Why a picture that can be decoded is not taken, and what helps."""


def colour_of(text: str) -> Colour:
    """Red, green and blue of a colour's name or "#rrggbb".

    Raises:
        UserError: it is none.
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except (ValueError, AttributeError):
        raise UserError(f"background {text!r} is no colour; give a name such as white, or #rrggbb") from None


def seen(opened: Image.Image, background: Colour, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an opened picture as people see it, mode RGB, and what was changed to get there.

    Raises:
        Refused: it is too large, a preview, or has values that are no numbers.
    """
    _check_size(opened, max_pixels)
    changes = []
    frames = getattr(opened, "n_frames", 1) if opened.format in _ANIMATED else 1
    profile, raw_mode = opened.info.get("icc_profile"), _raw_mode(opened)
    if opened.format == "TIFF":
        _refuse_preview(opened)
    opened.load()
    _check_size(opened, max_pixels)  # that of an icon is known only now
    image: Image.Image = opened
    if frames > 1:
        image.seek(0)
        changes.append(f"the first of {frames} {'pages' if opened.format == 'TIFF' else 'frames'}")
    orientation = _orientation(opened)
    image, alpha = _eight_bits(image, raw_mode, changes)
    image = _in_srgb(image, profile, changes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        on = Image.new("RGB", image.size, background)
        on.paste(image, mask=alpha)
        image = on
        changes.append("transparency filled")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        changes.append("turned upright")
    return (image.copy() if image is opened else image), tuple(changes)


def _check_size(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise Refused(
            f"it has {image.width:,} x {image.height:,} px; at most {most:,} px are read: make it smaller"
        )


def _raw_mode(image: Image.Image) -> str:
    """Return how the file packs its values ("RGB;16B"), before they are decoded; "" if nobody says."""
    if not image.tile:  # type: ignore[attr-defined]
        return ""
    arguments = image.tile[0][3]  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _refuse_preview(image: Any) -> None:
    """Refuse a camera's raw file, a TIFF whose first picture is a thumbnail."""
    if image.tag_v2.get(_DNG_VERSION) or (image.tag_v2.get(_SUBFILE, 0) or 0) & 1:
        raise Refused(
            "it is a camera's raw file or begins with a preview; save the picture as TIFF, PNG or JPEG"
        )


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8 as EXIF counts. Damaged EXIF says nothing; HEIF and JPEG XL are turned by their
    decoders.
    """
    if image.format in ("HEIF", "JXL"):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


# ------------------------------------------------------------------------------------------- depth and alpha


def _eight_bits(
    image: Image.Image, raw_mode: str, changes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Return colours in 8 bits (L, RGB or CMYK) and opacity (L), None where the picture knows none."""
    key = image.info.get("transparency")
    if image.mode in _DEEP:
        values = np.asarray(image)
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if key is not None else None
        changes.append("more than 8 bits scaled to 8")
        return Image.fromarray(_scaled(values, image, raw_mode)), alpha
    if ";16" in raw_mode:
        changes.append("more than 8 bits scaled to 8")
    if image.mode in ("P", "PA"):
        has_alpha = image.mode == "PA" or key is not None or image.palette.mode == "RGBA"  # type: ignore[union-attr]
        image = image.convert("RGBA" if has_alpha else "RGB")
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    elif image.mode == "1":
        image = _keyed(image.convert("L"), key)
    elif image.mode in ("L", "RGB") and key is not None:
        image = _keyed(image, _key_of_stored(key, raw_mode))
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        return image.convert("RGB" if image.mode == "RGBA" else "L"), alpha
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = _transformed(image, ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB"))
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    return image, None


def _key_of_stored(key: Any, raw_mode: str) -> Any:
    """Return the colour that is transparent as the decoded picture has it: PNG notes it in the file's own
    depth.
    """
    if ";16" in raw_mode:
        return tuple(value >> 8 for value in key) if isinstance(key, tuple) else key >> 8
    scale = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
    return key * scale if isinstance(key, int) else key


def _keyed(image: Image.Image, key: Any) -> Image.Image:
    """L or RGB with an alpha channel that is 0 where a pixel has the colour `key`."""
    if key is None or isinstance(key, bytes):
        return image
    values = np.asarray(image)
    hidden = (values == np.asarray(key)).reshape(*values.shape[:2], -1).all(axis=2)
    result = image.copy()
    result.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    return result


def _scaled(values: Any, image: Image.Image, raw_mode: str) -> Any:
    """Return grey values of more than 8 bits -> uint8."""
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused("it holds NaN or infinity; a picture's values are finite: save it again")
    exact = values.astype(np.float64)
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        low, high = 0.0, 65535.0
    elif low < 0 or high > 65535:
        high = max(high, low + 1)
    else:
        fractions = image.mode == "F" and high <= 1
        low, high = (
            0.0,
            next(top for top in ((1.0, 255.0, 65535.0) if fractions else (255.0, 65535.0)) if high <= top),
        )
    exact = (exact - low) / (high - low) * 255
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith("I;16"):  # 0 is white; Pillow turns 8 bits only
        exact = 255 - exact
    return np.round(exact).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- colour space


def _in_srgb(image: Image.Image, profile: bytes | None, changes: list[str]) -> Image.Image:
    """L, RGB or CMYK -> RGB, by the picture's own profile where it has one that fits and can be read."""
    transform = _to_srgb(profile, image.mode) if profile else None
    if transform is not None:
        changes.append("colours turned to sRGB")
        return _transformed(image, transform)
    if image.mode == "CMYK":
        changes.append("colours turned to sRGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """Return the transform from a profile to sRGB; None where it is sRGB already, damaged, or of another
    space.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != {"L": "GRAY"}.get(mode, mode):
            return None
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
        if mode == "CMYK":
            return transform
        ramp = np.linspace(0, 255, 256 if mode == "L" else 9).round().astype(np.uint8)
        colours = ramp[None] if mode == "L" else np.stack(np.meshgrid(ramp, ramp, ramp), -1).reshape(1, -1, 3)
        before = Image.fromarray(colours)
        after = np.asarray(_transformed(before, transform), dtype=int)
        return None if np.abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _transformed(image: Image.Image, transform: Any) -> Image.Image:
    changed = ImageCms.applyTransform(image, transform)
    assert changed is not None  # not in place
    return changed
