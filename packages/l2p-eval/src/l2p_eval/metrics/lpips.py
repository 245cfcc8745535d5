"""LPIPS (Zhang et al. 2018), for the diversity of Fig. 5: torchmetrics' network and linear layers (0.1).

The linear layers come with torchmetrics; the backbone's ImageNet weights are the user's torchvision file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from l2p_run import hashes
from PIL import Image
from torch import Tensor

from l2p_eval.errors import EvalError
from l2p_eval.metrics.features import to_tensor

Backbone = Literal["alex", "vgg", "squeeze"]
_FILES: dict[Backbone, str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


_SLICE = re.compile(r"^slices?\.?\d+\.")


class Lpips:
    """Perceptual distance of image pairs.

    Args:
        weights: torchvision's state dict of the backbone, for example alexnet-owt-7be5be79.pth.
        size: px; images are resized to this square first (bilinear, antialiased). None: as they are.
    """

    def __init__(
        self, weights: Path, backbone: Backbone = "alex", *, size: int | None = 256, device: str = "cpu"
    ) -> None:
        if size is not None and size < 1:
            raise EvalError(f"LPIPS at {size} px: compare at 1 px or more; 256 is usual")
        if not weights.is_file():
            raise EvalError(f"no {backbone} weights {weights}; give torchvision's {_FILES[backbone]}")
        try:
            from torchmetrics.functional.image.lpips import _LPIPS

            self.network: Any = _LPIPS(pretrained=True, net=backbone, pnet_rand=True)
        except ImportError:
            raise EvalError(
                "LPIPS needs torchmetrics and torchvision; run `pip install l2p-eval[lpips]`"
            ) from None
        try:
            stored = torch.load(weights, map_location="cpu", weights_only=True)
            own = self.network.net.state_dict()  # slice1.0.weight, slices.0.0.weight: features.0.weight there
            theirs = {name: _SLICE.sub("features.", name) for name in own}
            self.network.net.load_state_dict({name: stored[there] for name, there in theirs.items()})
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise EvalError(f"{weights} does not hold torchvision's {backbone} weights ({reason})") from None
        self.network.eval().to(device)
        self.size, self.device = size, device
        self.name = f"LPIPS-{backbone}"
        self.preprocessing = f"bilinear, antialiased, to {size} x {size}" if size else "as it is"
        self.weights_sha256 = hashes.of_file(weights)

    @torch.inference_mode()
    def distances(self, left: Sequence[Image.Image], right: Sequence[Image.Image]) -> Tensor:
        """Return (N,) distances of pairs; 0 for equal images."""
        pairs = [torch.stack([self._prepare(image) for image in side]) for side in (left, right)]
        distance: Tensor = self.network(*(pair.to(self.device) for pair in pairs), normalize=True)
        return distance.flatten().float().cpu()

    def _prepare(self, image: Image.Image) -> Tensor:
        tensor = to_tensor(image)
        if self.size is None:
            return tensor
        size = (self.size, self.size)
        return torch.nn.functional.interpolate(tensor[None], size, mode="bilinear", antialias=True)[0]
