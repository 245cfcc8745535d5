"""The models that an evaluation paints with: how each loads and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from l2p_eval.painters import Paint


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A model and how it samples; called with a device it is a function from prompts and seeds to images.

    Picklable, so that worker processes load the model themselves.
    """

    kind: Literal["source", "l2p"]
    model: str  # directory
    fingerprint: str  # changes when the weights do
    width: int  # px
    height: int  # px
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline's call
    cpu_offload: bool = False  # parts of the pipeline are on the device by turns

    @property
    def title(self) -> str:
        """For progress."""
        return "L2P" if self.kind == "l2p" else "source"

    @property
    def settings(self) -> dict[str, Any]:
        """What defines its images beside prompts and seeds; a directory may be moved, and memory saved."""
        return {name: value for name, value in asdict(self).items() if name not in ("model", "cpu_offload")}

    def __call__(self, device: str) -> Paint:
        """Loads the weights from the directory, never from the network; an image does not depend on its
        batch."""
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from l2p_arch import L2PPipeline
        from transformers.utils import logging as transformers_logging

        for logging in (diffusers_logging, transformers_logging):
            logging.disable_progress_bar()
            logging.set_verbosity_error()
        kind = L2PPipeline if self.kind == "l2p" else DiffusionPipeline
        pipeline = kind.from_pretrained(
            self.model, dtype=getattr(torch, self.dtype), local_files_only=True, use_safetensors=True
        )
        if self.cpu_offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        size = {"height": self.height, "width": self.width}

        @torch.inference_mode()
        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            return list(pipeline(prompt=list(prompts), generator=generators, **size, **self.options).images)

        return paint
