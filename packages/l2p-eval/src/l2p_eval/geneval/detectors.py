"""GenEval's detector and colour classifier for real pictures: Mask2Former on COCO, CLIP on the cut-out
object.

The models are the official evaluator's (Swin-S instance segmentation; ViT-L/14), run through transformers
from the user's files. transformers resizes masks to 384 px before it takes boxes from them, mmdet does not:
scores are close to the official ones, not bit-equal, and `name` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from l2p_eval.geneval import Detection
from l2p_eval.user_models import (
    check_directory,
    describe_processor,
    finite,
    load_network,
    load_part,
    weights_sha256,
)

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
GENEVAL_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""What GenEval's prompts call a COCO class, by the names that published checkpoints have for it. The official
evaluator goes by the class's number, so that its detector's own names do not matter there."""
BACKGROUND = "#999999"  # what surrounds a cut-out object
MINIMUM_CONFIDENCE = 0.05  # below this a query is noise; GenEval's own thresholds are 0.3 and 0.9


@dataclass(frozen=True, kw_only=True)
class MaskedDetection:
    """An object with its silhouette. `mask`: (H, W), True inside."""

    label: str
    confidence: float
    box: tuple[float, float, float, float]
    mask: np.ndarray
    color: str | None = None


class Mask2FormerDetector:
    """Finds COCO objects with a Mask2Former instance segmentation model in a local transformers directory."""

    name = "Mask2Former (transformers)"

    def __init__(self, model: Path, *, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        check_directory(model)
        what = "Mask2Former"
        self.processor = load_part(AutoImageProcessor, model, what)
        self.network = load_network(Mask2FormerForUniversalSegmentation, model, what).to(device)
        self.weights_sha256 = weights_sha256(model)
        self.preprocessing = describe_processor(self.processor)
        own: Mapping[int, str] = self.network.config.id2label
        self.labels = {index: GENEVAL_NAMES.get(name, name) for index, name in own.items()}
        self.classes = frozenset(self.labels.values())

    @torch.inference_mode()
    def detect(self, image: Image.Image) -> list[MaskedDetection]:
        """Objects, most confident first."""
        image = image.convert("RGB")
        inputs = self.processor(images=image, return_tensors="pt").to(self.network.device)
        outputs = self.network(**inputs)
        for part in (outputs.class_queries_logits, outputs.masks_queries_logits):
            finite(part, self.name)
        result = self.processor.post_process_instance_segmentation(
            outputs,
            threshold=MINIMUM_CONFIDENCE,
            target_sizes=[(image.height, image.width)],
            return_binary_maps=True,
        )[0]
        found = []
        for mask, segment in zip(_masks(result), result["segments_info"], strict=True):
            box = box_of(mask)
            if box is not None:
                label = self.labels[segment["label_id"]]
                found.append(
                    MaskedDetection(label=label, confidence=float(segment["score"]), box=box, mask=mask)
                )
        return sorted(found, key=lambda detection: -detection.confidence)


class ClipColors:
    """Names an object's colour: zero-shot CLIP over ten colours and three phrasings, on the object alone."""

    name = "CLIP (transformers)"
    colors = COLORS

    def __init__(self, model: Path, *, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        check_directory(model)
        self.processor = load_part(CLIPImageProcessor, model, "CLIP")
        self.tokenizer = load_part(AutoTokenizer, model, "CLIP")
        self.network = load_network(CLIPModel, model, "CLIP").to(device)
        self.weights_sha256 = weights_sha256(model)
        self._classifiers: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def classify(self, image: Image.Image, detection: Detection) -> str:
        """Return one of `COLORS`."""
        inputs = self.processor(images=cut_out(image, detection), return_tensors="pt").to(self.network.device)
        features = _features(self.network.get_image_features(**inputs))
        scores = torch.nn.functional.normalize(features, dim=-1) @ self._classifier(detection.label).T
        return COLORS[int(finite(scores, self.name).argmax())]

    def _classifier(self, label: str) -> torch.Tensor:
        """Return (10, D): per colour the mean of the normalised embeddings of its phrasings, normalised."""
        if label not in self._classifiers:
            rows = []
            for color in COLORS:
                texts = [f"a photo of a {color} {label}", f"a photo of a {color}-colored {label}"]
                texts.append(f"a photo of a {color} object")
                tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.network.device)
                features = torch.nn.functional.normalize(
                    _features(self.network.get_text_features(**tokens)), dim=-1
                )
                rows.append(torch.nn.functional.normalize(features.mean(dim=0), dim=0))
            self._classifiers[label] = torch.stack(rows)
        return self._classifiers[label]


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """Return the object on grey, cropped to its box; without a mask, the crop as it is."""
    image = image.convert("RGB")
    mask = getattr(detection, "mask", None)
    if mask is not None:
        background = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, background, Image.fromarray(mask.astype(np.uint8) * 255))
    x0, y0, x1, y1 = (round(side) for side in detection.box)
    return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return (x0, y0, x1, y1) around the True pixels of (H, W); None when there are none."""
    ys, xs = np.nonzero(mask)
    if not len(xs):
        return None
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def _masks(result: Mapping[str, Any]) -> Sequence[np.ndarray]:
    """Return the binary maps of a post-processed image, one per segment."""
    maps = result["segmentation"]
    if maps is None or not len(result["segments_info"]):
        return []
    return list(np.asarray(maps.cpu()).astype(bool))


def _features(output: Any) -> torch.Tensor:
    """CLIP's projected features; newer transformers wrap them in an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
