"""Do image and text agree? CLIP, Long-CLIP and FG-CLIP scores (Table 2): mean of 100 * max(cosine, 0).

Models come from the user's transformers directories. Long-CLIP is a CLIP whose text encoder has 248
positions. FG-CLIP's code comes with its weights and runs only where `trust_remote_code` allows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.checks import unit
from l2p_eval.user_models import (
    check_directory,
    describe_processor,
    first_line,
    load_network,
    weights_sha256,
)

Kind = Literal["clip", "long-clip", "fg-clip"]
LONG_POSITIONS = 248
_NAMES: dict[Kind, str] = {"clip": "CLIP", "long-clip": "Long-CLIP", "fg-clip": "FG-CLIP"}


@dataclass(frozen=True, kw_only=True)
class AlignmentResult:
    """Mean of 100 * max(cosine, 0) over images and their prompts."""

    name: str  # "Long-CLIP"
    value: float
    count: int
    positions: int  # tokens of a text; longer ones are cut
    cut: int  # texts that were cut
    preprocessing: str
    weights_sha256: str

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


class TextImageModel:
    """A two-tower model: images and texts as unit vectors.

    Args:
        model: a transformers directory with config, weights, tokenizer and image processor.
        kind: which score it is for; a CLIP that does not have the positions of a Long-CLIP is refused.
        trust_remote_code: run the code in `model`; FG-CLIP needs it.
    """

    def __init__(
        self, model: Path, kind: Kind, *, device: str = "cpu", trust_remote_code: bool = False
    ) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        _check(model, kind, trust_remote_code)
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, **options)
            self.processor = AutoImageProcessor.from_pretrained(model, **options)
        except (OSError, ValueError, KeyError) as error:
            raise EvalError(f"{model} cannot be loaded as {_NAMES[kind]}: {first_line(error)}") from None
        self.network = _load(model, kind).to(device)
        self.kind, self.device = kind, device
        self.positions: int = LONG_POSITIONS
        if kind != "fg-clip":  # which counts its long texts' positions elsewhere
            self.positions = self.network.config.text_config.max_position_embeddings
        if kind == "long-clip" and self.positions < LONG_POSITIONS:
            raise EvalError(
                f"{model} reads {self.positions} tokens; {_NAMES[kind]} reads {LONG_POSITIONS}. A plain CLIP?"
            )
        self.weights_sha256 = weights_sha256(model)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, D), each of length 1."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        return _unit(self.network.get_image_features(inputs["pixel_values"]))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Return (N, D), each of length 1, and how many texts were cut at `positions` tokens."""
        lengths = [len(ids) for ids in self.tokenizer(list(texts)).input_ids]
        inputs = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.positions, return_tensors="pt"
        ).to(self.device)
        if self.kind == "fg-clip":  # its long texts use positions of their own
            features = self.network.get_text_features(inputs["input_ids"], walk_short_pos=False)
        else:
            features = self.network.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
        return _unit(features), sum(length > self.positions for length in lengths)


def alignment_of(
    images: Sequence[Path],
    prompts: Sequence[str],
    model: TextImageModel,
    *,
    batch_size: int = 16,
    on_image: Callable[[int, int], None] | None = None,
) -> AlignmentResult:
    """Return the score of image files against their prompts, pair by pair."""
    if len(images) != len(prompts) or not images:
        raise EvalError(
            f"there are {len(images)} images and {len(prompts)} prompts; give one of each or more"
        )
    cosines, cut = [], 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        texts, shortened = model.embed_texts(prompts[part])
        pictures = model.embed_images([open_image(path) for path in images[part]])
        cosines.append((texts * pictures).sum(dim=1).float().cpu())
        cut += shortened
        if on_image:
            on_image(min(start + batch_size, len(images)), len(images))
    values = torch.cat(cosines)
    return AlignmentResult(
        name=_NAMES[model.kind],
        value=float(100 * values.clamp(min=0).mean()),
        count=len(images),
        positions=model.positions,
        cut=cut,
        preprocessing=describe_processor(model.processor),
        weights_sha256=model.weights_sha256,
    )


def _check(model: Path, kind: Kind, trust_remote_code: bool) -> None:
    check_directory(model)
    if kind == "fg-clip" and not trust_remote_code:
        raise EvalError(
            f"FG-CLIP's code lies in {model} and would run here; read it, then give --trust-remote-code"
        )


def _load(model: Path, kind: Kind) -> Any:
    from transformers import AutoModelForCausalLM, CLIPModel

    if kind == "fg-clip":  # its authors register their two towers under this class
        options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": True}
        return AutoModelForCausalLM.from_pretrained(model, **options).eval()
    return load_network(CLIPModel, model, _NAMES[kind])


def _unit(output: Any) -> Tensor:
    """Normalised features; newer transformers wrap them in an output object."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return unit(features.float(), "the embeddings")
