"""Read an image of the miniature's world back into objects, by colour geometry alone.

The detector knows the palette and the silhouettes, not the renderer: it estimates the background from the
border, mattes every connected region against it (how far each pixel has moved from the background's colour
to the object's), and compares the matte with an ideal silhouette of each shape in the same box. It has no
weights and no randomness.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from l2p_mini.world import (
    BACKGROUNDS,
    BASE_SIZE,
    COLORS,
    CROSS_ARM,
    RING_HOLE,
    SHAPES,
)

Array = np.ndarray
_PALETTE = np.array(list(COLORS.values()), np.float32)

FOREGROUND = 44.0  # RGB distance from the background, of 441; half of the palette's smallest contrast
MIN_AREA = 24  # px at 64 px; smaller regions are specks
SURE_AREA = 60  # px at 64 px; the smallest shape of the grammar has about 75
COLOR_NEAR, COLOR_FAR = 40.0, 110.0  # RGB distance to the palette: certain, and no evidence at all
OVERLAP_LOW, OVERLAP_HIGH = 0.52, 0.75  # soft IoU with the best silhouette: no evidence, and certain


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object. `label`: shape; `box`: (x0, y0, x1, y1) in pixels of the given image; `confidence` in [0,
    1]."""

    label: str
    color: str
    box: tuple[float, float, float, float]
    confidence: float


class ExactDetector:
    """Find every object of the miniature's world in an image."""

    name = "l2p-mini-exact-1"
    classes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = tuple(COLORS)

    def detect(self, image: Image.Image) -> list[Detection]:
        """Return the objects of an RGB image of any size, surest first."""
        pixels = np.asarray(_to_base_size(image.convert("RGB")), np.float32)
        background = border_color(pixels)
        away = np.linalg.norm(pixels - background, axis=-1)
        found = [
            _describe(pixels, background, region)
            for region in _split_colors(pixels, *ndimage.label(away > FOREGROUND))
            if region.sum() >= MIN_AREA
        ]
        sx, sy = image.width / BASE_SIZE, image.height / BASE_SIZE
        boxed = [replace(d, box=(d.box[0] * sx, d.box[1] * sy, d.box[2] * sx, d.box[3] * sy)) for d in found]
        return sorted(boxed, key=lambda d: -d.confidence)

    def background(self, image: Image.Image) -> str:
        """Return the name of the background colour nearest to the image's border."""
        color = border_color(np.asarray(_to_base_size(image.convert("RGB")), np.float32))
        return min(BACKGROUNDS, key=lambda name: float(np.linalg.norm(color - BACKGROUNDS[name])))


def border_color(pixels: Array) -> Array:
    """Return the median RGB of the two outermost rows and columns of (H, W, 3) pixels."""
    border = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    return np.median(np.concatenate([part.reshape(-1, 3) for part in border]), axis=0)


def _to_base_size(image: Image.Image) -> Image.Image:
    size = (BASE_SIZE, BASE_SIZE)
    if image.size == size:
        return image
    larger = image.width >= BASE_SIZE and image.height >= BASE_SIZE
    return image.resize(size, Image.Resampling.BOX if larger else Image.Resampling.BICUBIC)


def _split_colors(pixels: Array, components: Array, count: int) -> list[Array]:
    """Return a mask per object: a connected component, or its parts where differently coloured objects
    touch."""
    nearest = np.linalg.norm(pixels[:, :, None] - _PALETTE, axis=-1).argmin(-1)
    regions = []
    for index in range(1, count + 1):
        component = components == index
        seeds = []
        for color in np.unique(nearest[component]):
            # An antialiased edge takes on colours between object and background, but never more than a pixel
            # deep.
            core = ndimage.binary_erosion(component & (nearest == color), np.ones((3, 3)))
            if core.sum() >= MIN_AREA // 3:
                seeds.append(core)
        if len(seeds) < 2:
            regions.append(component)
            continue
        distances = np.stack([ndimage.distance_transform_edt(~seed) for seed in seeds])
        regions += [component & (distances.argmin(0) == i) for i in range(len(seeds))]
    return regions


def _describe(pixels: Array, background: Array, region: Array) -> Detection:
    away = np.linalg.norm(pixels - background, axis=-1)
    core = region & (away >= 0.8 * np.percentile(away[region], 80))
    color = np.median(pixels[core], axis=0)
    distances = np.linalg.norm(_PALETTE - color, axis=-1)
    matte = np.where(ndimage.binary_dilation(region), _matte(pixels, background, color), 0.0)
    box = _box(matte)
    overlaps = {shape: _soft_iou(matte, silhouette(shape, box)) for shape in SHAPES}
    label = max(overlaps, key=lambda shape: overlaps[shape])
    confidence = (
        _ramp(overlaps[label], OVERLAP_LOW, OVERLAP_HIGH)
        * (1 - _ramp(float(distances.min()), COLOR_NEAR, COLOR_FAR))
        * min(1.0, float(matte.sum()) / SURE_AREA)
    )
    return Detection(label=label, color=list(COLORS)[int(distances.argmin())], box=box, confidence=confidence)


def _matte(pixels: Array, background: Array, color: Array) -> Array:
    """Return, per pixel, the share of the way from the background's colour to the object's, in [0, 1]."""
    axis = color - background
    return np.clip((pixels - background) @ axis / (axis @ axis + 1e-6), 0, 1)


def _box(matte: Array) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) with sub-pixel edges: an edge pixel counts by its strongest matte."""

    def ends(profile: Array) -> tuple[float, float]:
        solid = np.flatnonzero(profile >= 0.5)
        first, last = (int(solid[0]), int(solid[-1])) if len(solid) else (0, len(profile) - 1)
        before = profile[first - 1] if first > 0 else 0.0
        after = profile[last + 1] if last + 1 < len(profile) else 0.0
        return first + (1 - profile[first]) - before, last + profile[last] + after

    (x0, x1), (y0, y1) = ends(matte.max(0)), ends(matte.max(1))
    return float(x0), float(y0), float(x1), float(y1)


_INSIDE: dict[str, Callable[[Array, Array], Array]] = {
    # u, v in [-1, 1] across the bounding box
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: (abs(u) <= 1) & (abs(v) <= 1),
    "triangle": lambda u, v: (abs(v) <= 1) & (abs(u) <= (v + 1) / 2),
    "ring": lambda u, v: (u**2 + v**2 <= 1) & (u**2 + v**2 >= RING_HOLE**2),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= CROSS_ARM) & (np.maximum(abs(u), abs(v)) <= 1),
}


def silhouette(shape: str, box: tuple[float, float, float, float], size: int = BASE_SIZE) -> Array:
    """Return the (size, size) pixel coverage of a shape that fills a box, by 4 x 4 samples a pixel."""
    x0, y0, x1, y1 = box
    centers = (np.arange(size * 4) + 0.5) / 4
    u = 2 * (centers - x0) / max(x1 - x0, 1e-3) - 1
    v = 2 * (centers - y0) / max(y1 - y0, 1e-3) - 1
    inside = _INSIDE[shape](u[None, :], v[:, None])
    return inside.reshape(size, 4, size, 4).mean((1, 3))


def _soft_iou(a: Array, b: Array) -> float:
    return float(np.minimum(a, b).sum() / max(np.maximum(a, b).sum(), 1e-6))


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))
