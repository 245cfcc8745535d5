"""Images for a report: embedded in a page, or laid out with captions in one PNG."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from l2p_eval.layout import open_image

SMALL = 256  # px; images up to this side are shown pixel by pixel, larger ones smoothly
EMBEDDED_SIDE = 640  # px; larger images are embedded at this size


def data_uri(image: Image.Image) -> str:
    """Return an image as a `data:` address: PNG when small or flat, JPEG when it would be large."""
    if max(image.size) > EMBEDDED_SIDE:
        image = image.copy()
        image.thumbnail((EMBEDDED_SIDE, EMBEDDED_SIDE), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "png" if max(image.size) <= SMALL else "jpeg"
    image.convert("RGB").save(buffer, format=kind.upper(), **({"quality": 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def comparison_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[str, Path, Path]]]],
    *,
    side: int = 160,
    headings: tuple[str, str] = ("source", "L2P"),
) -> Image.Image:
    """Return pairs of images with captions under them, one labelled row after another.

    Args:
        rows: (label, [(caption, left image, right image), ...]).
        side: px of a shown image.
    """
    gap, label_height, caption_height, head_height = 16, 30, 40, 26
    columns = max((len(pairs) for _, pairs in rows), default=1)
    pair_width = 2 * side + 6
    width = gap + columns * (pair_width + gap)
    height = head_height + len(rows) * (label_height + side + caption_height) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    small, bold = ImageFont.load_default(13), ImageFont.load_default(18)
    for column in range(columns):
        x = gap + column * (pair_width + gap)
        for heading, offset in zip(headings, (0, side + 6), strict=True):
            draw.text((x + offset, 10), heading, fill="#64748b", font=small)
    y = head_height
    for label, pairs in rows:
        draw.text((gap, y + 6), label, fill="#0f172a", font=bold)
        y += label_height
        for column, (caption, left, right) in enumerate(pairs):
            x = gap + column * (pair_width + gap)
            sheet.paste(_shown(left, side), (x, y))
            sheet.paste(_shown(right, side), (x + side + 6, y))
            draw.text(
                (x, y + side + 5), _wrap(caption, pair_width, small), fill="#334155", font=small, spacing=2
            )
        y += side + caption_height
    return sheet


def _shown(path: Path, side: int) -> Image.Image:
    """Return an image fitted into a square, small ones enlarged without smoothing."""
    image = open_image(path)
    scale = side / max(image.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = [max(1, round(length * scale)) for length in image.size]
    square = Image.new("RGB", (side, side), "#f1f5f9")
    square.paste(image.resize((size[0], size[1]), method), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, lines: int = 2) -> str:
    """Break a caption at words to at most `lines` lines of `width` px."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            wrapped[-1] = longer
        elif len(wrapped) == lines:
            wrapped[-1] += " ..."
            break
        else:
            wrapped.append(word)
    return "\n".join(wrapped)


def grid_sheet(
    rows: Sequence[tuple[str, Sequence[Path]]], *, captions: Sequence[str] = (), side: int = 128
) -> Image.Image:
    """Return images as a table: one labelled row a model, one captioned column a prompt.

    Args:
        rows: (label, its images), all of one length.
        captions: over the columns.
        side: px of a shown image.
    """
    gap, label_width, head = 8, 170, 64 if captions else 8
    columns = max((len(paths) for _, paths in rows), default=0)
    sheet = Image.new("RGB", (label_width + columns * (side + gap), head + len(rows) * (side + gap)), "white")
    draw, font, bold = ImageDraw.Draw(sheet), ImageFont.load_default(12), ImageFont.load_default(14)
    for column, caption in enumerate(captions):
        place = (label_width + column * (side + gap), 6)
        draw.text(place, _wrap(caption, side, font, lines=3), fill="#334155", font=font, spacing=2)
    for row, (label, paths) in enumerate(rows):
        y = head + row * (side + gap)
        draw.text(
            (8, y + side // 2 - 14), _wrap(label, label_width - 14, bold, lines=3), fill="#0f172a", font=bold
        )
        for column, path in enumerate(paths):
            sheet.paste(_shown(path, side), (label_width + column * (side + gap), y))
    return sheet
