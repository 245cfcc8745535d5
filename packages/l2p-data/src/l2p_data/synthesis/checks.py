"""What an image is checked for before it enters the corpus: safety by a classifier, rendered text by OCR.

Both are options. An image that fails is listed with its reason and not stored.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from l2p_run.errors import raised_as
from l2p_run.settings import check_settings, setting
from PIL import Image

from l2p_data.errors import DataError
from l2p_data.models import local_directory

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|「([^」]+)」|『([^』]+)』')


class ImageCheck(Protocol):
    """Anything that finds fault with images."""

    def faults(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str | None]:
        """Return for each image "reason: details" or None."""
        ...


class ImageClassifier(Protocol):
    """Anything that gives an image's labels their probabilities."""

    def classify(self, images: Sequence[Image.Image]) -> list[Mapping[str, float]]:
        """Return the probability by label, for each image."""
        ...


class TextReader(Protocol):
    """Anything that reads the text in an image."""

    def read(self, image: Image.Image) -> str:
        """Return all text found, in any order of lines."""
        ...


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Which checks run; by default none."""

    safety_model: str | None = None  # a transformers image-classification directory, or its id
    unsafe_labels: tuple[str, ...] = ("nsfw", "unsafe", "porn", "hentai", "sexy")  # those the model has count
    unsafe_threshold: float = setting(0.5, ge=0, le=1)  # of their probabilities' sum
    # share of the quoted characters that OCR must find; 0: no OCR
    min_text_match: float = setting(0.0, ge=0, le=1)

    def __post_init__(self) -> None:
        raised_as(DataError)(check_settings)(self)

    def load(self, device: str = "cpu") -> list[ImageCheck]:
        """Return the checks, their models loaded.

        Raises:
            DataError: a model or a package is missing.
        """
        checks: list[ImageCheck] = []
        if self.safety_model is not None:
            classifier = TransformersClassifier(self.safety_model, device)
            labels = [label for label in classifier.labels if label.casefold() in _folded(self.unsafe_labels)]
            if not labels:
                raise DataError(
                    f"{self.safety_model} knows none of the unsafe labels {', '.join(self.unsafe_labels)}; "
                    f"its labels are {', '.join(classifier.labels[:12])}"
                )
            checks.append(SafetyCheck(classifier, labels, self.unsafe_threshold))
        if self.min_text_match > 0:
            checks.append(TextCheck(RapidReader(), self.min_text_match))
        return checks


@dataclass(frozen=True)
class SafetyCheck:
    """Images whose unsafe labels are too probable."""

    classifier: ImageClassifier
    labels: Sequence[str]
    threshold: float

    def faults(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str | None]:
        """Return "unsafe: LABEL 0.93 ..." or None."""
        found: list[str | None] = []
        for scores in self.classifier.classify(images):
            total = sum(scores.get(label, 0.0) for label in self.labels)
            worst = max(self.labels, key=lambda label: scores.get(label, 0.0))
            found.append(
                f"unsafe: {worst} {scores.get(worst, 0.0):.2f}, unsafe labels together {total:.2f}, "
                f"allowed below {self.threshold:g}"
                if total >= self.threshold
                else None
            )
        return found


@dataclass(frozen=True)
class TextCheck:
    """Images that do not show the text that their prompts quote."""

    reader: TextReader
    min_match: float

    def faults(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str | None]:
        """Return "text: ..." or None; a prompt without quotes demands nothing."""
        return [self._fault(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _fault(self, image: Image.Image, prompt: str) -> str | None:
        wanted = [next(filter(None, groups)) for groups in _QUOTED.findall(prompt)]
        if not wanted:
            return None
        read = self.reader.read(image)
        match = text_match(wanted, read)
        if match >= self.min_match:
            return None
        return f"text: wanted {' / '.join(wanted)[:60]!r}, read {read[:60]!r} ({match:.2f} of it)"


def text_match(wanted: Sequence[str], read: str) -> float:
    """Return the share of the wanted texts' letters and digits that stand, in order, in what was read; in [0,
    1].
    """
    found = total = 0
    plain = _letters(read)
    for text in wanted:
        letters = _letters(text)
        blocks = SequenceMatcher(None, letters, plain, autojunk=False).get_matching_blocks()
        found += sum(block.size for block in blocks)
        total += len(letters)
    return found / total if total else 1.0


class TransformersClassifier:
    """An `ImageClassifier`: any transformers image-classification model."""

    def __init__(self, model: str | Path, device: str = "cpu") -> None:
        directory = local_directory(model, "config.json", "a transformers image-classification model")
        try:
            from transformers import AutoImageProcessor, AutoModelForImageClassification
        except ImportError as error:
            raise DataError(f"{error}; install l2p-data[diffusers]") from error
        self.device = device
        self.processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
        self.model = (
            AutoModelForImageClassification.from_pretrained(
                directory, local_files_only=True, use_safetensors=True
            )
            .to(device)
            .eval()
        )
        self.labels = [str(label) for _, label in sorted(self.model.config.id2label.items())]

    def classify(self, images: Sequence[Image.Image]) -> list[Mapping[str, float]]:
        """Return softmax over the model's labels."""
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            shares = self.model(**inputs).logits.float().softmax(-1).tolist()
        return [dict(zip(self.labels, row, strict=True)) for row in shares]


class RapidReader:
    """A `TextReader`: RapidOCR, whose models (Chinese and Latin) come in its wheel."""

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise DataError(f"{error}; install l2p-data[ocr]") from error
        self.engine: Any = RapidOCR(params={"Global.log_level": "error"})

    def read(self, image: Image.Image) -> str:
        """Return lines from top to bottom, joined by spaces."""
        result = self.engine(np.asarray(image.convert("RGB")))
        return " ".join(result.txts or ())


def _folded(labels: Sequence[str]) -> set[str]:
    return {label.casefold() for label in labels}


def _letters(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in plain if character.isalnum())
