"""How prompts become images, checked when it is made (sec. 3.2, "Image Synthesis")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_run.devices import DTYPES
from l2p_run.errors import UserError
from l2p_run.settings import Range, check_settings, check_value, convert, setting

from l2p_data.corpus.files import raised_as
from l2p_data.errors import DataError
from l2p_data.synthesis.checks import CheckSettings

LARGEST_SIDE = 16_384
"""px, of an image to be made: 4 times a 4K picture's."""
PIPELINE_RANGES: Mapping[str, Range] = {
    "num_inference_steps": Range(ge=1, le=10_000),
    "max_sequence_length": Range(ge=1, le=1_000_000),
    "num_images_per_prompt": Range(ge=1, le=1),  # one row, one image; more come from seeds_per_prompt
}
"""Of pipeline arguments whose meaning is the same everywhere. All numbers must be finite."""
OF_THE_SYNTHESIS = ("prompt", "width", "height", "generator", "output_type", "return_dict")
"""Arguments of a pipeline that follow from the row, or that the worker reads the answer by."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How prompts become images. The paper: 10k prompts, 2 seeds each, 1024 px, Z-Image-Turbo (sec. 4.1)."""

    model: (
        str | Path
    )  # diffusers text-to-image directory, or the id of a model in the local Hugging Face cache
    output: str | Path  # corpus directory
    seeds_per_prompt: int = setting(2, ge=1, le=100_000)  # images per prompt
    width: int = setting(1024, ge=1, le=LARGEST_SIDE)  # px
    height: int = setting(1024, ge=1, le=LARGEST_SIDE)  # px
    # (width, height) px: each image gets one of these sizes instead
    buckets: Sequence[tuple[int, int]] = setting((), ge=1, le=LARGEST_SIDE)
    batch_size: int = setting(8, ge=1, le=65_536)  # images per pipeline call
    # images per Parquet file; what a crash can cost at most, per worker
    rows_per_shard: int = setting(64, ge=1, le=1_000_000)
    # None: one per GPU, or as many as the CPUs hold; 0: this process, without Ray
    workers: int | None = setting(None, ge=0, le=65_536)
    threads_per_worker: int = setting(1, ge=1, le=65_536)  # of torch, on the CPU
    # None: 1 if the Ray cluster has GPUs, else 0; fractions share a GPU
    gpus_per_worker: float | None = setting(None, ge=0, le=1024)
    worker_resources: Mapping[str, float] = setting(dict, ge=0)  # custom ones of the Ray cluster
    dtype: str = (
        "auto"  # float32, bfloat16, float16; auto: bfloat16 where the device computes in it, else float32
    )
    cpu_offload: bool = (
        False  # text encoder, transformer and VAE are on the GPU by turns: slower, less memory
    )
    image_format: str = "png"  # or "jpeg"
    max_attempts: int = setting(2, ge=1, le=1000)  # per image
    # bits; images with less are listed as failed (photographs: 6 to 7.5)
    min_entropy: float = setting(0.0, ge=0, le=8)
    checks: CheckSettings = field(default_factory=CheckSettings)  # safety classifier, OCR of rendered text
    ray_address: str | None = None  # a running cluster; None: Ray on this machine only
    pipeline_kwargs: Mapping[str, Any] = field(
        default_factory=dict
    )  # num_inference_steps, guidance_scale, ...

    def __post_init__(self) -> None:
        with raised_as(DataError):
            check_settings(self)
            self._check_pipeline_arguments()
        if self.gpus_per_worker and self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise DataError(
                f"gpus_per_worker is {self.gpus_per_worker:g}; above 1 it must be whole, as Ray shares out "
                "whole GPUs"
            )
        if self.dtype not in ("auto", *DTYPES):
            raise DataError(f"dtype {self.dtype!r} is not known; use auto, {', '.join(DTYPES)}")
        if self.image_format not in ("png", "jpeg"):
            raise DataError(f"image_format {self.image_format!r} is not known; use png or jpeg")

    def _check_pipeline_arguments(self) -> None:
        """Raise `UserError` for arguments that no pipeline takes, or that each image gets from here."""
        for name, value in self.pipeline_kwargs.items():
            if not isinstance(name, str):
                raise UserError(f"pipeline_kwargs has the key {name!r}; names of arguments are texts")
            if name in OF_THE_SYNTHESIS:
                raise UserError(
                    f"pipeline_kwargs.{name} is set for each image by the synthesis; leave it out"
                )
            if name in PIPELINE_RANGES and value is not None:
                check_value(convert(value, int, name), PIPELINE_RANGES[name], name)
        if (guidance := self.pipeline_kwargs.get("guidance_scale")) is not None:
            convert(guidance, float, "guidance_scale")
