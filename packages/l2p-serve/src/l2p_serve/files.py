"""Pictures -> PNG files that remember how they were made."""

from collections.abc import Iterable
from pathlib import Path

from l2p_run.places import atomic_path
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from l2p_serve.painting import Picture


def save(pictures: Iterable[Picture], output: Path, count: int) -> list[tuple[Path, Picture]]:
    """Writes `output`, or `output-0000.png`, `output-0001.png`, ... for several, each as it comes."""
    written = []
    for number, picture in enumerate(pictures):
        name = f"{output.stem}-{number:04d}{output.suffix}"
        path = output if count == 1 else output.with_name(name)
        write_png(picture.image, path, picture.recipe.chunks())
        written.append((path, picture))
    return written


def write_png(image: Image.Image, path: Path, chunks: PngInfo) -> None:
    """Writes a PNG whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
