"""Text embeddings, computed once by the source's own text encoder and kept in safetensors.

The key of an entry is the hash of its prompt; the folder's name is the hash of the encoder (weights, config,
tokenizer, chat template, longest length). So a cache is never read by loader position, survives a reshuffled
corpus, and is never used with another encoder. The encoder is not in memory while training.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from l2p_run import hashes
from l2p_run.errors import raised_as
from l2p_run.places import atomic_path, read_json
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.machine.tensors import open_tensors, save_tensors

Conditioning = Mapping[str, Tensor]
_PART_PROMPTS = 1024  # prompts per file
_BATCH_PROMPTS = 32  # prompts per call of the encoder


def prompt_key(prompt: str) -> str:
    """Return the cache key of a prompt."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:32]


def encoder_hash(model_dir: Path, components: Sequence[str], max_sequence_length: int) -> str:
    """Return a hash of all that decides an embedding: every byte of the encoder's files, and the length.

    Large files are read once and remembered by path, size and times of change (`l2p_run.hashes`).
    """
    with raised_as(TrainError):
        files = [
            path.relative_to(model_dir)
            for name in components
            for path in sorted((model_dir / name).rglob("*"))
            if path.is_file()
        ]
        if not files:
            raise TrainError(
                f"{model_dir} has no text encoder ({', '.join(components)}); give a converted one"
            )
        return hashes.of_settings([max_sequence_length, hashes.of_files(model_dir, files)], 16)


class ConditioningCache:
    """Prompt -> `Conditioning`, read from the files of one encoder's folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._handles: dict[Path, Any] = {}
        self._where: dict[str, list[tuple[str, Path]]] = {}  # prompt key -> (entry, file)
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of files that are new."""
        for path in sorted(self.directory.glob("*.safetensors")):
            if path in self._handles:
                continue
            try:
                handle = open_tensors(path)
            except (TrainError, OSError) as error:
                raise TrainError(
                    f"corrupt text embeddings {path}: {error}; delete the file and run again"
                ) from error
            self._handles[path] = handle
            for name in handle.keys():  # noqa: SIM118 - no mapping
                key, entry = name.split("/", 1)
                known = self._where.setdefault(key, [])
                if all(entry != other for other, _ in known):
                    known.append((entry, path))

    def __contains__(self, prompt: str) -> bool:
        return prompt_key(prompt) in self._where

    def __getitem__(self, prompt: str) -> Conditioning:
        key = prompt_key(prompt)
        if key not in self._where:
            raise KeyError(f"no text embedding for the prompt {prompt!r} in {self.directory}")
        return {entry: self._handles[path].get_tensor(f"{key}/{entry}") for entry, path in self._where[key]}

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Return the prompts that are not cached, each once, sorted (the same list in every process)."""
        return sorted({prompt for prompt in prompts if prompt not in self})


def write_embeddings(directory: Path, encoded: Mapping[str, Conditioning]) -> Path:
    """Write prompt -> conditioning as one file whose name follows from its prompts; return its path."""
    tensors = {
        f"{prompt_key(prompt)}/{entry}": tensor.detach().cpu().contiguous().clone()
        for prompt, conditioning in encoded.items()
        for entry, tensor in conditioning.items()
    }
    name = hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()[:16]
    path = directory / f"{name}.safetensors"
    with raised_as(TrainError), atomic_path(path) as temporary:
        save_tensors(tensors, temporary)
    return path


def encode_missing(
    model_dir: Path,
    prompts: Sequence[str],
    directory: Path,
    *,
    max_sequence_length: int,
    device: torch.device | str = "cpu",
) -> Iterator[int]:
    """Encode `prompts` with the model's own text encoder into `directory`; yield how many are done."""
    from l2p_arch import L2PPipeline
    from l2p_arch.files.mapping import unmapped

    if not prompts:
        return
    family = source_family(model_dir)
    dtype = stored_dtype(model_dir, family.text_components)
    pipeline = L2PPipeline.from_pretrained(
        model_dir,
        transformer=None,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        **unmapped(model_dir, dtype=dtype),
    )
    components = {name: getattr(pipeline, name) for name in family.text_components}
    for component in components.values():
        if isinstance(component, torch.nn.Module):
            component.to(device).eval()
    for start in range(0, len(prompts), _PART_PROMPTS):
        part: dict[str, Conditioning] = {}
        chosen = prompts[start : start + _PART_PROMPTS]
        for first in range(0, len(chosen), _BATCH_PROMPTS):
            some = chosen[first : first + _BATCH_PROMPTS]
            with torch.no_grad():
                encoded = family.encode_text(
                    components, some, device=torch.device(device), max_sequence_length=max_sequence_length
                )
                if "" in some and family.encode_negative_text is not None:  # only guidance asks for it
                    encoded[some.index("")] = family.encode_negative_text(
                        components, [""], device=torch.device(device), max_sequence_length=max_sequence_length
                    )[0]
            part |= dict(zip(some, encoded, strict=True))
        write_embeddings(directory, part)
        yield start + len(chosen)


def embed_prompts(
    config: TrainConfig,
    prompts: Iterable[str],
    rank: int,
    processes: int,
    on_part: Callable[[int, int], None],
    share_files: Callable[[Path], None],
) -> ConditioningCache:
    """Encode what the run's cache lacks, each process a share; return it with the encoder gone. Collective.

    Args:
        on_part: called with (done, of how many) after each part; what it raises ends the run.
        share_files: gives all machines the files of a folder; collective.
    """
    family = source_family(config.model)
    longest = config.max_sequence_length or family.text_tokens
    name = encoder_hash(config.model, family.text_components, longest)
    directory = config.output / "conditioning" / name
    share_files(directory)
    cache = ConditioningCache(directory)
    wanted = cache.missing(prompts)
    # Every process must have looked before the first one writes: the shares come from equal lists.
    torch.distributed.barrier()
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    share = wanted[rank::processes]
    for done in encode_missing(config.model, share, directory, max_sequence_length=longest, device=device):
        on_part(done, len(share))
    if (
        torch.cuda.is_available()
    ):  # the allocator keeps the encoder's 8 GB and more, in pieces of its own sizes
        gc.collect()
        torch.cuda.empty_cache()
    torch.distributed.barrier()
    share_files(directory)
    cache.refresh()
    return cache


def stored_dtype(model_dir: Path, components: Sequence[str]) -> torch.dtype:
    """Return the dtype the encoder's weights are stored in: that of the first tensor."""
    for path in (path for name in components for path in sorted((model_dir / name).glob("*.safetensors"))):
        with open_tensors(path) as file:
            return file.get_tensor(next(iter(file.keys()))).dtype
    return torch.float32


def source_family(model_dir: Path) -> Any:
    """Return the `Family` of a model directory, from its transformer's config."""
    from l2p_arch import FAMILIES

    path = Path(model_dir) / "transformer" / "config.json"
    if not path.is_file():
        raise TrainError(
            f"{model_dir} is no L2P model directory: no transformer/config.json; write one with convert"
        )
    settings = raised_as(TrainError)(read_json)(path)
    name = settings.get("family") if isinstance(settings, dict) else None
    if name not in FAMILIES:
        raise TrainError(
            f"{path}: family {name!r} is unknown; known: {', '.join(FAMILIES)}; is this a converted model?"
        )
    return FAMILIES[name]
