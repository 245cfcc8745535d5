"""The model card beside exported weights: what they are, how to run them, where they come from."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from l2p_arch.arguments import check_names, check_paths
from l2p_arch.files.components import name_of, read_model_config
from l2p_arch.files.tensor_files import StoredTensor, index_directory
from l2p_arch.source_formats import source_format

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- l2p
- pixel-space
- {family}
---

# {title}

A pixel-space text-to-image diffusion transformer made from a latent one by Latent-to-Pixel transfer (L2P,
[arXiv 2605.12013](https://arxiv.org/abs/2605.12013)): no VAE, large pixel patches, and {head} on top.

| | |
|---|---|
| trunk | `{transformer_class}` of diffusers, family `{family}` |
| patch | {patch_size} x {patch_size} px; height and width must be multiples of it |
| encoder widths of the Detailer Head | {head_channels} |
| parameters | {parameters:,} |
| weights | {dtypes} |
| start | {origin} |

{usage}

## What to know

- The time axis is sigma: 0 = image, 1 = noise; the model predicts noise - x_0 of pixels in [-1, 1].
- Images are as good as the training since the start named above. Without any, they are noise.
- The blocks are inherited from the source model: its licence and its terms of use apply to these weights too.
"""

_RUN = """```python
from l2p_arch import L2PPipeline

pipeline = L2PPipeline.from_pretrained({where!r})
image = pipeline("a teapot on a wooden table", height={side}, width={side}, seeds=[0]).images[0]
```"""

_IMPORT = """```python
from l2p_arch import import_public

import_public({where!r}, "<a Z-Image pipeline directory>", "model")
```"""


def write_model_card(directory: Path | str, origin: str, *, title: str | None = None) -> Path:
    """Write README.md, the model card, into an L2P model directory, and return its path.

    Args:
        directory: a model directory such as `convert` and training write; an existing card is replaced.
        origin: one phrase on where the weights start from and what was done since.
        title: heading; the directory's name unless given.
    """
    check_paths(directory=directory)
    check_names(origin=origin, **({} if title is None else {"title": title}))
    directory = Path(directory)
    config = read_model_config(directory)
    title = title or name_of(directory)
    usage = _RUN.format(where=title, side=64 * config["patch_size"])
    path = directory / "README.md"
    write_text(path, _filled(config, index_directory(directory / "transformer"), title, origin, usage))
    return path


def write_text(path: Path, card: str) -> None:
    """Write a card; what a file's name holds beside characters is replaced."""
    path.write_text(card, encoding="utf-8", errors="replace")


def single_file_card(file: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], origin: str) -> str:
    """Return the card of a single file in a public layout, which brings no text encoder of its own."""
    return _filled(config, tensors, file.stem, origin, _IMPORT.format(where=file.name))


def _filled(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], title: str, origin: str, usage: str
) -> str:
    source = source_format(config["family"])
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
    return _CARD.format(
        title=title,
        family=source.family,
        transformer_class=source.transformer_class,
        patch_size=config["patch_size"],
        head="a small U-Net, the Detailer Head," if config["head_channels"] else "a plain linear head",
        head_channels=", ".join(map(str, config["head_channels"])) or "none",
        parameters=sum(counts.values()),
        dtypes=", ".join(f"{count:,} in {dtype}" for dtype, count in sorted(counts.items())),
        origin=origin.replace("|", "\\|"),
        usage=usage,
    )
