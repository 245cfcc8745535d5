"""The miniature's world: scenes of one to four flat shapes, and how they look at any resolution.

A scene is resolution-free: positions and sizes are fractions of the image side. At 64 px a shape is a plain,
antialiased silhouette. From 128 px on, every shape and every background also carries a fine pattern and a
rim. Both have zero mean over 1/64 of the image side, so that the 64 px image is the box-filtered large one:
what a higher resolution adds is detail, not another picture.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 48, 49),
    "green": (46, 164, 79),
    "blue": (46, 92, 214),
    "yellow": (232, 196, 46),
    "purple": (142, 68, 190),
    "white": (235, 235, 235),
}
BACKGROUNDS: dict[str, Rgb] = {"gray": (128, 128, 128), "beige": (205, 190, 160), "black": (25, 25, 25)}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "ring", "cross")

BASE_SIZE = 64  # px; the resolution of the miniature's source model
DETAIL_PERIOD = 1 / BASE_SIZE  # of the image side; averages out at BASE_SIZE
DETAIL_AMPLITUDE = 20.0  # of 255; every palette entry keeps this distance from 0 and 255
DETAIL_MIN_SIZE = 2 * BASE_SIZE  # px; below it the pattern cannot be represented

SQUARE_HALF_SIDE = 0.84  # all of these are fractions of the object's radius
RING_HOLE = 0.5
CROSS_ARM = 0.34
TRIANGLE_BASE_Y, TRIANGLE_HALF_BASE = 0.75, 0.95


@dataclass(frozen=True, kw_only=True)
class Object:
    """One shape. `x, y`: centre, and `radius`: circumscribed radius, as fractions of the image side, y
    pointing down."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects, drawn in order, on a plain background (a key of `BACKGROUNDS`)."""

    background: str
    objects: tuple[Object, ...]


def outline(item: Object) -> list[tuple[float, float]]:
    """Return the polygon of an object's outer outline in image fractions; circles and rings have 64
    corners."""
    r, (x, y) = item.radius, (item.x, item.y)
    if item.shape in ("circle", "ring"):
        angles = [2 * math.pi * i / 64 for i in range(64)]
        return [(x + r * math.cos(a), y + r * math.sin(a)) for a in angles]
    if item.shape == "square":
        s = SQUARE_HALF_SIDE * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if item.shape == "triangle":
        base, half = y + TRIANGLE_BASE_Y * r, TRIANGLE_HALF_BASE * r
        return [(x, y - r), (x + half, base), (x - half, base)]
    if item.shape == "cross":
        a = CROSS_ARM * r
        corners = [
            (-a, -r),
            (a, -r),
            (a, -a),
            (r, -a),
            (r, a),
            (a, a),
            (a, r),
            (-a, r),
            (-a, a),
            (-r, a),
            (-r, -a),
            (-a, -a),
        ]
        return [(x + u, y + v) for u, v in corners]
    raise ValueError(f"unknown shape {item.shape!r}; the world has {', '.join(SHAPES)}")


def hole(item: Object) -> list[tuple[float, float]] | None:
    """Return the polygon of a ring's hole in image fractions, or None for a shape without one."""
    if item.shape != "ring":
        return None
    return outline(
        Object(shape="circle", color=item.color, x=item.x, y=item.y, radius=RING_HOLE * item.radius)
    )


def render(scene: Scene, size: int = BASE_SIZE) -> Image.Image:
    """Draw a scene as a square RGB image of `size` pixels a side, antialiased by supersampling and a box
    filter."""
    if size < 16:
        raise ValueError(f"size {size} px is too small to show a scene; use 16 or more")
    factor = 4 if size <= 256 else 2
    if size < DETAIL_MIN_SIZE:
        return _render_flat(scene, size * factor).reduce(factor)
    return Image.fromarray(_render_detailed(scene, size * factor)).reduce(factor)


def _render_flat(scene: Scene, side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        draw.polygon(_pixels(outline(item), side), fill=COLORS[item.color])
        if inner := hole(item):
            draw.polygon(_pixels(inner, side), fill=BACKGROUNDS[scene.background])
    return image


def _render_detailed(scene: Scene, side: int) -> np.ndarray:
    v, u = np.mgrid[0:side, 0:side].astype(np.float32) / side + 0.5 / side
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    canvas += _pattern(scene.background, u, v, 0.0, 0.0)[..., None]
    for item in scene.objects:
        mask = _mask(item, side)
        canvas[mask] = (
            np.array(COLORS[item.color], np.float32) + _pattern(item.shape, u, v, item.x, item.y)[mask, None]
        )
        canvas += _rim(mask, side)[..., None]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _mask(item: Object, side: int) -> np.ndarray:
    image = Image.new("1", (side, side))
    draw = ImageDraw.Draw(image)
    draw.polygon(_pixels(outline(item), side), fill=1)
    if inner := hole(item):
        draw.polygon(_pixels(inner, side), fill=0)
    return np.asarray(image)


def _rim(mask: np.ndarray, side: int) -> np.ndarray:
    """Return a dark line inside and a light line outside the silhouette, each a quarter of the detail period
    wide."""
    from scipy.ndimage import binary_dilation, binary_erosion

    width = max(1, round(side * DETAIL_PERIOD / 4))
    inside = mask & ~binary_erosion(mask, iterations=width)
    outside = ~mask & binary_dilation(mask, iterations=width)
    return DETAIL_AMPLITUDE * (outside.astype(np.float32) - inside.astype(np.float32))


def _pattern(kind: str, u: np.ndarray, v: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return a square wave of +-DETAIL_AMPLITUDE whose mean over one detail period is zero; its form depends
    on the shape."""
    f = 2 * math.pi / DETAIL_PERIOD
    waves = {
        "circle": lambda: np.sin(f * np.hypot(u - x, v - y)),
        "ring": lambda: np.sin(f * (u - x)),
        "square": lambda: np.sin(f * u) * np.sin(f * v),
        "triangle": lambda: np.sin(f * (v - y)),
        "cross": lambda: np.sin(f * (u + v)),
        "gray": lambda: np.sin(f * u) * np.sin(f * v),
        "beige": lambda: np.sin(f * (u - v)),
        "black": lambda: np.sin(f * v),
    }
    strength = DETAIL_AMPLITUDE if kind in SHAPES else DETAIL_AMPLITUDE / 2
    return (strength * np.sign(waves[kind]())).astype(np.float32)


def _pixels(points: list[tuple[float, float]], side: int) -> list[tuple[float, float]]:
    # Pillow puts pixel centres at integers: half a pixel is taken off so that shapes stay centred at any
    # resolution.
    return [(px * side - 0.5, py * side - 0.5) for px, py in points]
