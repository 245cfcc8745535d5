"""Pictures -> PNG files that remember how they were made, and what differs from such a file."""

from collections.abc import Iterable
from pathlib import Path

from l2p_run.pictures import open_picture
from l2p_run.places import atomic_path, make_folder
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from l2p_serve.errors import ServeError
from l2p_serve.painting import Picture


def check_output(output: Path) -> None:
    """Refuse a name that could not be written, before hours of painting."""
    if output.suffix.lower() != ".png":
        raise ServeError(f"-o {output} must end in .png, the format that keeps the parameters")
    if output.is_dir():
        raise ServeError(f"-o {output} is a folder; give the name of a file")
    make_folder(output.parent, "choose another -o")


def save(pictures: Iterable[Picture], output: Path, count: int) -> list[tuple[Path, Picture]]:
    """Write `output`, or `output-0000.png`, `output-0001.png`, ... for several, each as it comes."""
    written = []
    for number, picture in enumerate(pictures):
        name = f"{output.stem}-{number:04d}{output.suffix}"
        path = output if count == 1 else output.with_name(name)
        write_png(picture.image, path, picture.recipe.chunks())
        written.append((path, picture))
    return written


def write_png(image: Image.Image, path: Path, chunks: PngInfo) -> None:
    """Write a PNG whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)


def difference(picture: Picture, original: Path) -> tuple[int, int]:
    """Return (pixels that differ, by how much at most of 255) between a picture and a PNG file of its
    size.
    """
    image = open_picture(original)
    if image.size != picture.image.size:
        return picture.image.width * picture.image.height, 255
    delta = ImageChops.difference(picture.image.convert("RGB"), image)
    bands = delta.split()
    largest = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    histogram = largest.histogram()
    return sum(histogram[1:]), max((value for value, count in enumerate(histogram) if count), default=0)
