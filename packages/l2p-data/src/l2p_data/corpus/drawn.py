"""A corpus of pictures that a function draws: a renderer in place of a source model."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from l2p_data.corpus.dataset import load_manifest, write_corpus
from l2p_data.corpus.images import encode_image
from l2p_data.corpus.manifest import manifest_path
from l2p_data.errors import DataError


def draw_corpus(
    folder: Path,
    prompts: pl.DataFrame,
    draw: Callable[[str, int], Image.Image],
    *,
    images_per_prompt: int,
    settings: Mapping[str, Any],
    renderer: str,
    rows_per_shard: int = 100,
    remedy: str = "choose another folder or delete it",
) -> None:
    """Write a corpus, once: one that is there with the same settings is taken as it is.

    Args:
        prompts: records of `PROMPT_SCHEMA`.
        draw: takes a prompt and a number from 0; the picture must be a function of both alone.
        settings: all that decides the pictures beside the prompts, for the manifest.
        renderer: what each row names as its maker, such as "renderer:l2p-mini".
        remedy: what to do about a folder of another corpus.

    Raises:
        DataError: the folder holds another corpus.
    """
    if manifest_path(folder) is not None:
        if load_manifest(folder).settings != settings:
            raise DataError(f"{folder} holds another corpus; {remedy}")
        return

    def rows() -> Iterator[dict[str, Any]]:
        for record in prompts.iter_rows(named=True):
            for number in range(images_per_prompt):
                image = draw(record["prompt"], number)
                yield {
                    **{key: record[key] for key in ("prompt", "language", "category", "subclass")},
                    "superclass": record["superclass"],
                    "created_by": record["created_by"],
                    "id": f"{record['id']}-{number}",
                    "seed": -1,
                    "width": image.width,
                    "height": image.height,
                    "image": {"bytes": encode_image(image), "path": f"{record['id']}-{number}.png"},
                    "source_model": renderer,
                }

    write_corpus(folder, rows(), settings=settings, rows_per_shard=rows_per_shard)
