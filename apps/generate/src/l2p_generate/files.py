"""Pictures -> PNG files that remember how they were made, one by one or on a contact sheet."""

from collections.abc import Sequence
from pathlib import Path

from l2p_run.errors import raised_as
from l2p_run.pictures import open_picture
from PIL import Image, ImageChops, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from l2p_generate.errors import GenerateError
from l2p_generate.painting import Picture


def save(pictures: Sequence[Picture], output: Path) -> list[Path]:
    """Writes `output`, or `output-0000.png`, `output-0001.png`, ... for several pictures."""
    names = [output]
    if len(pictures) > 1:
        names = [
            output.with_name(f"{output.stem}-{number:04d}{output.suffix}") for number in range(len(pictures))
        ]
    for picture, path in zip(pictures, names, strict=True):
        write_png(picture.image, path, picture.recipe.chunks())
    return names


def save_sheet(pictures: Sequence[Picture], output: Path, *, columns: int) -> Path:
    """Writes all pictures in one PNG, each with its prompt and seed under it."""
    side = max(192, min(512, max(picture.image.width for picture in pictures)))
    gap, caption = 12, 44
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = gap + columns * (side + gap), gap + rows * (side + caption + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, picture in enumerate(pictures):
        x = gap + number % columns * (side + gap)
        y = gap + number // columns * (side + caption + gap)
        scale = side / max(picture.image.size)
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        size = (round(picture.image.width * scale), round(picture.image.height * scale))
        sheet.paste(picture.image.resize(size, method), (x, y))
        text = picture.recipe.prompt
        while font.getlength(text) > side:
            text = text[: -4 if text.endswith("...") else -1].rstrip(" .") + "..."
        draw.text((x, y + side + 4), f"{text}\nseed {picture.recipe.seed}", fill="#334155", font=font)
    chunks = PngInfo()
    for number, picture in enumerate(pictures):
        chunks.add_itxt(f"parameters-{number:04d}", picture.recipe.parameters())
    write_png(sheet, output, chunks)
    return output


def difference(picture: Picture, original: Path) -> tuple[int, int]:
    """(pixels that differ, by how much at most of 255) between a picture and a PNG file of its size."""
    painted = raised_as(GenerateError)(open_picture)(original)
    delta = ImageChops.difference(picture.image.convert("RGB"), painted)
    bands = delta.split()
    largest = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    histogram = largest.histogram()
    return sum(histogram[1:]), max((value for value, count in enumerate(histogram) if count), default=0)


def write_png(image: Image.Image, path: Path, chunks: PngInfo) -> None:
    """Writes a PNG whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        image.save(partial, format="PNG", pnginfo=chunks)
        partial.replace(path)
    except OSError as error:
        raise GenerateError(f"cannot write {path}: {error.strerror}; choose another -o") from None
