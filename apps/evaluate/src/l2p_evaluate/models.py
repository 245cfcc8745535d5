"""Models that an evaluation paints with: pixel-space ones, runs of l2p-transfer, any diffusers directory."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_eval.painting import Paint
from l2p_run.devices import resolve_dtype

from l2p_evaluate.errors import EvaluateError

SAMPLING_FILE = "sampling.json"
"""Beside model_index.json: how the model likes to be sampled; l2p-transfer writes it."""
_RELEASED = {"height": 1024, "width": 1024, "num_inference_steps": 30, "guidance_scale": 2.0}
_HASHED = {".json", ".safetensors", ".txt", ".model", ".jinja"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model directory and how it samples; called with a device it is a function from prompts to images.

    Picklable, so that worker processes and Ray actors load the model themselves.
    """

    directory: Path
    pixel: bool  # an L2P model; else a latent one, through diffusers
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline's call, height and width too
    cpu_offload: bool = False  # parts of the pipeline are on the device by turns; changes no image

    @property
    def settings(self) -> dict[str, Any]:
        """What defines its images, beside prompts and seeds."""
        return {
            "model": self.directory.name,
            "weights_sha256": weights_hash(self.directory),
            "dtype": self.dtype,
            **self.options,
        }

    def __call__(self, device: str) -> Paint:
        """Loads the weights from the directory, never from the network."""
        import torch

        pipeline = load_pipeline(
            self.directory, self.pixel, dtype=self.dtype, device=device, cpu_offload=self.cpu_offload
        )
        taken = inspect.signature(pipeline.__call__).parameters
        if unknown := [name for name in self.options if name not in taken]:
            raise EvaluateError(
                f"{type(pipeline).__name__} takes no {', '.join(unknown)}; leave the option out"
            )

        @torch.inference_mode()
        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            try:
                return list(pipeline(prompt=list(prompts), generator=generators, **self.options).images)
            except ValueError as error:  # what pipelines say of sizes and the like
                raise EvaluateError(f"{self.directory.name} cannot paint this: {error}") from error

        return paint


def load_pipeline(directory: Path, pixel: bool, *, dtype: str, device: str, cpu_offload: bool = False) -> Any:
    """A pipeline on a device, or with `cpu_offload` its parts by turns, loaded without network and noise.

    Raises:
        EvaluateError: files of the model are missing or damaged.
    """
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from l2p_arch import L2PPipeline
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        pipeline = (L2PPipeline if pixel else DiffusionPipeline).from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise EvaluateError(f"{directory} cannot be loaded ({reason}); write the model again") from error
    if cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def find_model(path: Path) -> tuple[Path, bool]:
    """(model directory, whether it is a pixel-space one) of a model or run directory.

    Raises:
        EvaluateError: there is none.
    """
    for candidate in (path, path / "model", path / "train" / "model"):
        index = candidate / "model_index.json"
        if index.is_file():
            try:
                kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
            except (ValueError, KeyError, TypeError):
                raise EvaluateError(f"{index} is damaged; write the model again") from None
            return candidate.resolve(), kind == "L2PPipeline"
    found = "holds no model_index.json" if path.exists() else "does not exist"
    raise EvaluateError(f"--model {path} {found}; give a run of l2p-transfer or a diffusers directory")


def open_model(
    path: Path, options: Mapping[str, Any], *, dtype: str = "auto", cpu_offload: bool = False
) -> Model:
    """A model with its own sampling defaults, overridden by the `options` that are not None."""
    directory, pixel = find_model(path)
    given = {key: value for key, value in options.items() if value is not None}
    if not pixel and "noise_shift" in given:
        raise EvaluateError("--shift is of pixel-space models; a latent model brings its scheduler's own")
    known = _RELEASED | _stored_sampling(directory) if pixel else {}
    sampling = {key: value for key, value in (known | given).items() if value is not None}
    return Model(
        directory=directory,
        pixel=pixel,
        dtype=resolve_dtype(dtype),
        options=sampling,
        cpu_offload=cpu_offload,
    )


def _stored_sampling(directory: Path) -> dict[str, Any]:
    path = directory / SAMPLING_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {key: values[key] for key in (*_RELEASED, "noise_shift") if key in values}
    except (ValueError, TypeError):
        raise EvaluateError(f"{path} is damaged; delete it to use general defaults") from None


def weights_hash(directory: Path) -> str:
    """sha256 over every config and weight file of a model directory, by relative name."""
    state = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.is_file() and path.suffix in _HASHED and not hidden:
            state.update(path.relative_to(directory).as_posix().encode())
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()
