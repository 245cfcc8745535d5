"""Does a picture show the grid of the patches that painted it? Jumps at patch borders over jumps inside.

A transformer paints a pixel-space image patch by patch. Where neighbouring patches do not agree, the step
between two pixels is larger across their border than inside. The measure is ours: the paper reports none.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.checks import check_whole
from l2p_eval.metrics.features import to_tensor


@dataclass(frozen=True, kw_only=True)
class PatchGridResult:
    """Mean jump at patch borders over the mean jump inside, of a whole set of images.

    Compare it with the source's own pictures at the same patch size: what a scene shows at these places is
    in the number, so that pictures without any grid are not at 1.
    """

    name: str  # "patch-grid-16"
    value: float  # borders / inside
    borders: float  # mean absolute difference of neighbouring pixels across a border, of values in [0, 1]
    inside: float  # the same within a patch
    patch_size: int  # px
    count: int
    preprocessing: str = "none: RGB pixels as they are, in [0, 1]"

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def jumps(image: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Absolute differences of neighbouring pixels, both directions and all channels: at borders and inside.

    Args:
        image: (C, H, W), values in [0, 1]; patches are counted from the upper left corner.
        patch_size: px, 2 or more.

    Returns:
        (B,) differences across a border and (I,) differences inside a patch, float64.

    Raises:
        EvalError: no such patches, no border in the image, or values that are NaN or infinite.
    """
    check_whole(patch_size=patch_size)
    if not isinstance(image, Tensor):
        raise EvalError(f"the image is {type(image).__name__}; wanted a tensor (C, H, W)")
    if patch_size < 2:
        raise EvalError(f"a patch of {patch_size} px has no pixels beside each other inside; give 2 or more")
    if image.ndim != 3 or max(image.shape[1:]) <= patch_size:
        shape = "x".join(str(side) for side in image.shape[:0:-1])
        raise EvalError(
            f"an image of {shape} px has no border of {patch_size} px patches; use a smaller patch"
        )
    if not torch.isfinite(image).all():
        raise EvalError("the image holds NaN or infinity; look for broken images")
    at_borders, inside = [], []
    for axis in (1, 2):
        steps = image.double().diff(dim=axis).abs()
        crosses = torch.arange(1, image.shape[axis]) % patch_size == 0
        at_borders.append(steps.movedim(axis, 0)[crosses].flatten())
        inside.append(steps.movedim(axis, 0)[~crosses].flatten())
    return torch.cat(at_borders), torch.cat(inside)


def patch_grid_of(
    images: Sequence[Path], patch_size: int, *, on_image: Callable[[int, int], None] | None = None
) -> PatchGridResult:
    """Return the patch grid of image files of any sizes; both means are taken over all pixels of all images.

    Args:
        patch_size: px; the model's own (16 at 1K), and the same for pictures that it is compared with.
        on_image: called with (images done, images in all).

    Raises:
        EvalError: no images, one that cannot be read or has no border, or nothing but flat patches.
    """
    if not images:
        raise EvalError("no images to score; give 1 or more")
    sums = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.int64)
    for done, path in enumerate(images, start=1):
        try:
            parts = jumps(to_tensor(open_image(path)), patch_size)
        except EvalError as error:
            raise EvalError(f"{path}: {error}") from None
        sums += torch.stack([part.sum() for part in parts])
        counts += torch.tensor([len(part) for part in parts])
        if on_image:
            on_image(done, len(images))
    borders, inside = (sums / counts).tolist()
    if inside == 0:
        raise EvalError(
            f"all {len(images)} images are flat inside their {patch_size} px patches, which leaves nothing"
            " to compare their borders with; give other images or another patch size"
        )
    return PatchGridResult(
        name=f"patch-grid-{patch_size}",
        value=borders / inside,
        borders=borders,
        inside=inside,
        patch_size=patch_size,
        count=len(images),
    )
