"""Model directories of transformers that a user brings: checked, loaded whole, hashed and described."""

from pathlib import Path
from typing import Any

import torch
from l2p_run import hashes
from torch import Tensor

from l2p_eval.errors import EvalError


def check_directory(model: Path) -> None:
    """Raise `EvalError` for a directory without a config.json."""
    if not (Path(model) / "config.json").is_file():
        raise EvalError(f"{model} is no transformers model directory: it has no config.json")


def load_network(kind: Any, model: Path, what: str) -> Any:
    """Return the network of class `kind`, from files only and in evaluation mode.

    Raises:
        EvalError: files are missing, damaged or another model's, or the weights lack a part of the network,
            which transformers would fill with random numbers.
    """
    try:
        network, info = kind.from_pretrained(
            model, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # by the kind of damage: OSError, SafetensorError, RuntimeError, KeyError
        raise EvalError(f"{model} holds no {what}: {first_line(error)}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise EvalError(f"{model} holds no {what}: its weights lack {missing[0]} and {len(missing) - 1} more")
    return network.eval()


def load_part(kind: Any, model: Path, what: str, **options: Any) -> Any:
    """Return a tokenizer or image processor of class `kind`, from files only; raises `EvalError`."""
    try:
        return kind.from_pretrained(model, local_files_only=True, **options)
    except Exception as error:
        raise EvalError(f"{model} holds no {what}: {first_line(error)}") from None


def finite(values: Tensor, model: str) -> Tensor:
    """Return the values, if none is NaN or infinite: an argmax would take one for an answer.

    Minus infinity passes, as long as something is above it: models that generate text forbid words by it.
    """
    if (
        torch.isnan(values).any()
        or torch.isposinf(values).any()
        or (values.numel() and torch.isneginf(values).all())
    ):
        raise EvalError(f"{model} answers NaN or infinity; look for broken weights or images")
    return values


def weights_sha256(model: Path) -> str:
    """Return one hash over a model directory's weight files, in order of their names."""
    weights = sorted([*model.glob("*.safetensors"), *model.glob("*.bin")])
    return hashes.of_bytes(b"".join(bytes.fromhex(hashes.of_file(path)) for path in weights))


def directory_sha256(model: Path) -> str:
    """Return one hash over all of a model directory's files: weights, configs, vocabulary."""
    return hashes.of_folder(model)


def describe_processor(processor: Any) -> str:
    """Return how an image processor resizes and cuts, in words for a result's definition."""
    words = [type(processor).__name__]
    if getattr(processor, "do_resize", False):
        words.append(f"resizes to {_numbers(processor.size)}")
    if getattr(processor, "do_center_crop", False):
        words.append(f"cuts the middle {_numbers(processor.crop_size)}")
    return ", ".join(words)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _numbers(size: Any) -> str:
    """Return "shortest_edge 224" of {"shortest_edge": 224}."""
    return " ".join(f"{key} {value}" for key, value in dict(size).items() if value is not None)
