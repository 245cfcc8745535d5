"""Pictures of the miniature's world in which a prompt is true, and the same in another house style."""

import colorsys
import random

import numpy as np
from PIL import Image, ImageFilter

from l2p_mini.grammar import draw_scene, parse
from l2p_mini.world import render


def render_prompt(prompt: str, number: int, size: int) -> Image.Image:
    """Return one scene in which `prompt` is true; a function of (prompt, number) alone.

    Args:
        prompt: of the miniature's grammar; raises `ValueError` for any other.
        size: px, of a side.
    """
    return render(draw_scene(parse(prompt), random.Random(f"{prompt}:{number}")), size)


def restyled(image: Image.Image, *, hue_degrees: float, blur: float) -> Image.Image:
    """Return another house style: every hue turned by degrees, every edge softened.

    Args:
        blur: radius of a Gaussian, px of a 64 px image; 0: none.
    """
    if hue_degrees:
        palette, indices = np.unique(np.asarray(image).reshape(-1, 3), axis=0, return_inverse=True)
        turned = np.empty_like(palette)
        for row, color in enumerate(palette / 255):
            h, s, v = colorsys.rgb_to_hsv(*color)
            turned[row] = np.rint(255 * np.array(colorsys.hsv_to_rgb((h + hue_degrees / 360) % 1, s, v)))
        image = Image.fromarray(turned[indices.reshape(-1)].reshape(image.height, image.width, 3))
    return image.filter(ImageFilter.GaussianBlur(blur * image.width / 64)) if blur else image
