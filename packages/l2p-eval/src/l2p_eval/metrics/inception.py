"""Inception-v3 from the user's weight file: FID's features, and the logits of the Inception Score (Table 2).

The network is torch-fidelity's: the TensorFlow graph of 2015 with its own resize, so that with the published
weights the values are those of FID. Nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from l2p_run import hashes
from torch import Tensor, nn

from l2p_eval.errors import EvalError
from l2p_eval.metrics.features import FeatureExtractor

PUBLISHED_SHA256 = "6726825d"
"""First digits of the sha256 of weights-inception-2015-12-05-6726825d.pth; its name carries them."""
PREPROCESSING = "8 bit; TensorFlow 1 bilinear, not antialiased, to 299 x 299; (x - 128) / 128"


class InceptionV3(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 2048) pooled features or (B, 1008) logits without bias."""

    def __init__(self, weights: Path, output: str) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise EvalError("Inception needs torch-fidelity; run `pip install l2p-eval[inception]`") from None
        if not weights.is_file():
            raise EvalError(
                f"no Inception weights {weights}; give torch-fidelity's"
                " weights-inception-2015-12-05-6726825d.pth"
            )
        self.output = output
        try:
            self.network: Any = FeatureExtractorInceptionV3(
                "l2p", [output], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # pickle, zip and key errors, by the kind of damage
            raise EvalError(
                f"{weights} holds no Inception-v3 weights ({str(error).splitlines()[0][:120]})"
            ) from None
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8)
        features: Tensor = self.network(pixels)[0]
        return features.flatten(1)


def inception(weights: Path, *, output: str = "2048") -> FeatureExtractor:
    """Return FID's extractor (`output` "2048"), or the classifier (`output` "logits_unbiased").

    With other weights than the published ones its name is "inception-v3" and the metric is no FID.
    """
    network = InceptionV3(weights, output)
    digest = hashes.of_file(weights)
    published = digest.startswith(PUBLISHED_SHA256)
    return FeatureExtractor(
        name="inception-2015-12-05" if published else "inception-v3",
        network=network,
        dimensions=2048 if output == "2048" else 1008,
        preprocessing=PREPROCESSING,
        weights_sha256=digest,
    )
