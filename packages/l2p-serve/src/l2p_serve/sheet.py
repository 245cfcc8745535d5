"""A contact sheet: many pictures in one PNG file, each with its prompt and seed under it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from l2p_serve.errors import ServeError
from l2p_serve.files import write_png
from l2p_serve.painting import Picture

_LARGEST_SHEET = 1 << 28  # pixels


def save_sheet(pictures: Sequence[Picture], output: Path, *, columns: int) -> Path:
    """Write all pictures in one PNG, each with its prompt and seed under it."""
    side = max(192, min(512, max(picture.image.width for picture in pictures)))
    gap, caption = 12, 44
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = gap + columns * (side + gap), gap + rows * (side + caption + gap)
    if width * height > _LARGEST_SHEET:
        raise ServeError(f"a sheet of {len(pictures)} pictures has {width} x {height} px; leave out --sheet")
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, picture in enumerate(pictures):
        x = gap + number % columns * (side + gap)
        y = gap + number // columns * (side + caption + gap)
        scale = side / max(picture.image.size)
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        size = [max(1, round(each * scale)) for each in picture.image.size]
        sheet.paste(picture.image.resize((size[0], size[1]), method), (x, y))
        text = fitting(picture.recipe.prompt, side, font)
        draw.text((x, y + side + 4), f"{text}\nseed {picture.recipe.seed}", fill="#334155", font=font)
    chunks = PngInfo()
    for number, picture in enumerate(pictures):
        chunks.add_itxt(f"parameters-{number:04d}", picture.recipe.parameters())
    write_png(sheet, output, chunks)
    return output


def fitting(text: str, width: int, font: Any) -> str:
    """Return the beginning of a text, in one line, that is at most `width` px wide.

    By halving, and never of more than a few characters a pixel: a prompt may be as long as a book.
    """
    line = " ".join(text[: 4 * width].split())
    if len(text) <= 4 * width and font.getlength(line) <= width:
        return line
    fits, too_long = 0, len(line) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(line[:middle].rstrip(" .") + "...") <= width:
            fits = middle
        else:
            too_long = middle
    return line[:fits].rstrip(" .") + "..."
