"""The final model directory: the initial one with the trained tensors replaced and the frozen ones copied."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from l2p_run import hashes
from l2p_run.errors import raised_as
from l2p_run.places import read_json, write_json

from l2p_train.errors import TrainError
from l2p_train.lora import COMFYUI, FOLDER, merge_into, save_adapters
from l2p_train.machine.tensors import open_tensors, save_tensors
from l2p_train.run.checkpoint import Checkpoint, TensorFiles, verify

_ADDED = "guidance_embedder."  # to a student that learns a range of guidance
_USUAL_GUIDANCE = 2.0  # of a model that brings no sampling.json
_DIGITS = 20  # of a base's hash; earlier versions had 16


def weight_files(transformer: Path) -> list[Path]:
    """Return the safetensors shards of a transformer directory."""
    files = sorted(transformer.glob("*.safetensors"))
    if not files:
        raise TrainError(f"no weights in {transformer}: no *.safetensors there")
    return files


def base_hash(model_dir: Path) -> str:
    """Return a hash of the transformer a run starts from: its config, and every byte of its weights.

    Large files are read once and remembered by path, size and times of change (`l2p_run.hashes`).
    """
    transformer = model_dir / "transformer"
    if not (transformer / "config.json").is_file():
        raise TrainError(f"{model_dir} is no L2P model directory: no transformer/config.json")
    names = [Path(path.name) for path in weight_files(transformer)]
    return raised_as(TrainError)(hashes.of_files)(transformer, [Path("config.json"), *names])[:_DIGITS]


def check_base(noted: str, base: str, model_dir: Path, since: float, output: Path) -> None:
    """Raise `TrainError` unless a run that noted one base was trained from this model.

    Earlier versions noted a hash of 16 digits, of the first MiB of each file. Where that matches, the files
    must also be older than the note: what was changed since may have been changed where it was not read.

    Args:
        noted: in the checkpoint.
        base: what `base_hash` says of `model_dir` now.
        since: when the checkpoint was written, in s since 1970.
    """
    if noted == base:
        return
    if len(noted) == _DIGITS or noted != _earlier_base_hash(model_dir):
        raise TrainError(f"{output} was trained from another model than {model_dir}; use another output")
    if newer := [path for path in weight_files(model_dir / "transformer") if path.stat().st_mtime > since]:
        raise TrainError(
            f"{newer[0]} was written after the newest checkpoint of {output}, which an earlier version made: "
            "it does not tell whether these are the weights that the run began with; if they are, say so by "
            f"touch -d '1 January 2020' {newer[0]}, else use another output"
        )


def _earlier_base_hash(model_dir: Path) -> str:
    digest = hashlib.sha256((model_dir / "transformer" / "config.json").read_bytes())
    for path in weight_files(model_dir / "transformer"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(min(length, 2**26)))
            digest.update(file.read(2**20))
    return digest.hexdigest()[:16]


def export_model(model_dir: Path, checkpoint: Checkpoint, out: Path) -> Path:
    """Write `out`, a complete diffusers directory for `L2PPipeline`, from the initial model and a checkpoint.

    Trained tensors come from the average if the run kept one, else from the float32 masters, in the dtype
    that the initial file has. One shard is in memory at a time. Needs neither the engine nor a GPU.
    """
    verify(checkpoint)
    trained = TensorFiles(checkpoint.files())
    kind = "ema" if trained.has_kind("ema") else "master"
    names, read = set(trained.names(kind)), trained.of(kind)
    every, settings = set(names), checkpoint.state["config"]
    temporary = out.parent / f".{out.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(model_dir, temporary, copy_function=_link, ignore=partial(_made_anew, model_dir))
    added = {name for name in names if settings.get("distil_guidance_range") and name.startswith(_ADDED)}
    for path in weight_files(model_dir / "transformer"):
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if added:  # to the first file
            dtype = next(value.dtype for value in tensors.values() if value.is_floating_point())
            tensors |= {name: read(name).to(dtype) for name in sorted(added)}
            _take_guidance(temporary / "transformer", path.name, tensors, added, settings)
            added = set()
        for name in names & set(tensors):
            tensors[name] = read(name).to(tensors[name].dtype)
        names -= set(tensors) | merge_into(tensors, names, read, settings)
        save_tensors(tensors, temporary / "transformer" / path.name, metadata=metadata)
    if names:
        raise TrainError(
            f"{model_dir} has no tensor {sorted(names)[0]!r}, which was trained; it is not the first model"
        )
    save_adapters(every, read, settings, temporary)
    provenance = {
        "step": checkpoint.step,
        "weights": kind,
        "base": checkpoint.state["base"],
        "config": checkpoint.state["config"],
    }
    write_json(temporary / "training.json", provenance)
    _sample_as_distilled(temporary, settings)
    if out.exists():
        shutil.rmtree(out)
    return temporary.rename(out)


def _take_guidance(
    transformer: Path, file: str, tensors: Mapping[str, Any], added: set[str], settings: Mapping[str, Any]
) -> None:
    """Enter the student's new input into its config and, where there is one, the index of its shards."""
    config = read_json(transformer / "config.json")
    write_json(transformer / "config.json", config | {"guidance_range": settings["distil_guidance_range"]})
    for path in transformer.glob("*.safetensors.index.json"):
        index = read_json(path)
        index["weight_map"] |= dict.fromkeys(sorted(added), file)
        total = index.get("metadata", {}).get("total_size")
        if isinstance(total, int):
            index["metadata"]["total_size"] = total + sum(tensors[name].nbytes for name in added)
        write_json(path, index)


def _sample_as_distilled(model: Path, settings: Mapping[str, Any]) -> None:
    """Take what a distilled model has learned (guidance, and with steps the polish) out of its defaults, and
    fix the schedule that it knows. A guidance that it takes as a number stays, within what it knows."""
    changes: dict[str, Any] = {}
    defaults = model / "sampling.json"
    scales = read_json(model / "transformer" / "config.json").get("guidance_range")
    if scales and settings.get("distil_guidance_range"):
        usual = read_json(defaults).get("guidance_scale") if defaults.is_file() else None
        usual = _USUAL_GUIDANCE if usual is None else float(usual)
        changes = {"guidance_scale": min(max(usual, scales[0]), scales[1])}
    elif not scales and (settings.get("distil_guidance") or settings.get("distil_steps")):
        changes = {"guidance_scale": 1.0}
    if settings.get("distil_steps"):
        changes |= {
            "num_inference_steps": settings["distil_steps"],
            "noise_shift": settings["noise_shift"],
        }
        path = model / "transformer" / "config.json"
        config = read_json(path)
        if (config.get("alignment") or {}).get("polish"):
            config["alignment"]["polish"] = 0.0
            write_json(path, config)
    needed = defaults.is_file() or settings.get("distil_steps") or settings.get("distil_guidance_range")
    if changes and needed:
        before = read_json(defaults) if defaults.is_file() else {}
        write_json(defaults, before | changes)


def _made_anew(model: Path, folder: str, names: list[str]) -> set[str]:
    """Return what of a model's folder is not copied: weights, and what its own training noted and adapted."""
    if Path(folder) == model:
        return {"training.json", FOLDER, Path(COMFYUI).parts[0]} & set(names)
    inside = Path(folder).name == "transformer"
    return {name for name in names if inside and name.endswith(".safetensors")}


def _link(source: str, target: str) -> None:
    """Hard-link where the file system can, else copy."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
