"""A source of random weights in a family's real layout: what a rehearsal runs on before any download.

Classes, configs, tensor names, shapes, dtypes and shards are those of the published model; only the values
are drawn. They are written tensor by tensor, so that 30 GB need no memory.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p_arch.families import find_family
from l2p_arch.families.published_pipelines import Component, Recipe, recipe
from l2p_arch.files.directories import read_json, write_json
from l2p_arch.files.tensor_files import WEIGHTS, dtype_name
from l2p_arch.files.tensor_writing import PlannedTensor, write_directory

DEPTHS = ("n_layers", "num_layers", "num_single_layers", "depth")  # keys of a transformer's config
TEXT_DEPTHS = ("num_hidden_layers", "num_layers")  # of a text encoder's
LEAST_TEXT_DEPTH = 2  # Z-Image reads the last state but one
SHARD_BYTES = 5 << 30
_POOL = 4_194_301  # values that all tensors are cut from; a prime, so that no two rows are alike
_COPIED = ("tokenizer", "scheduler", "processor")  # parts of a directory that hold no weights


def build_on_meta(component: Component, depth: int | None = None) -> Any:
    """Return the module of a component without any values, its blocks cut to `depth` of each kind."""
    import diffusers
    import transformers

    library: Any = {"diffusers": diffusers, "transformers": transformers}[component.library]
    kind = getattr(library, component.class_name)
    config = dict(component.config)
    with torch.device("meta"):
        if component.library == "transformers":
            made = kind.config_class(**config)
            for part in (made, getattr(made, "text_config", None)):
                _cut(part, TEXT_DEPTHS, depth and max(depth, LEAST_TEXT_DEPTH))
            return kind._from_config(made, dtype=component.dtype)
        if depth is not None and component.class_name.endswith(("Transformer2DModel", "TransformerModel")):
            whole = dict(kind(**config).config)
            config |= {key: min(depth, whole[key]) for key in DEPTHS if isinstance(whole.get(key), int)}
        before = torch.get_default_dtype()
        torch.set_default_dtype(component.dtype)  # `to` would warn of parts that want float32; there are none
        try:
            return kind(**config)
        finally:
            torch.set_default_dtype(before)


def write_random_source(
    out: Path,
    family: str,
    *,
    like: Path | None = None,
    depth: int | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a pipeline directory of a family with random weights; return its bytes.

    A part that is there completely is left as it is, so that writing goes on where it was stopped.

    Args:
        out: directory to create or to go on with.
        like: a directory whose configs, tokenizers and schedulers are followed; None: the published model's
            configs, and a tokenizer that takes every byte for a token.
        depth: at most so many blocks of each list, in the transformer and in the text encoders; None: all.
        shard_bytes: most of one file.
        on_progress: called with the bytes written and the bytes to be written.

    Raises:
        ArchError: neither the family's size is known nor a directory given, or a class cannot be built.
    """
    find_family(family)
    parts = dict(_parts_like(like) if like else recipe(family).components)
    modules = {name: build_on_meta(part, depth) for name, part in parts.items()}
    plans = {name: list(_plan(modules[name], part, seed)) for name, part in parts.items()}
    total = sum(tensor.size for plan in plans.values() for tensor in plan)
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    for name, plan in plans.items():
        folder = out / name
        if not (folder / "config.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_directory(folder, plan, max_shard_bytes=shard_bytes)
            if parts[name].library == "transformers":
                _rename_as_transformers(folder)
            _write_config(modules[name], parts[name], folder)  # last: it says that the part is complete
        done += sum(tensor.size for tensor in plan)
        on_progress(done, total)
    if like:
        _copy_rest(like, out)
    else:
        _write_rest(recipe(family), parts, out)
    return total


def _cut(config: Any, keys: Sequence[str], depth: int | None) -> None:
    """Shorten what a config of transformers says about layers."""
    if config is None or depth is None:
        return
    for key in keys:
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, min(depth, getattr(config, key)))
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:depth]


def _plan(module: Any, part: Component, seed: int) -> Iterator[PlannedTensor]:
    """Yield the tensors of a module, to be made one by one; of tied ones the first, and no indices."""
    draw = _Values(seed)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    dtype = dtype_name(part.dtype)
    for name, tensor in module.state_dict().items():
        if name in own and tensor.is_floating_point():
            shape = tuple(tensor.shape)
            yield PlannedTensor(
                name=name, dtype=dtype, shape=shape, origin=draw.tensor(name, shape, part.dtype)
            )


class _Values:
    """Random weights that keep a signal's size: normal of variance 1 / fan-in; scales are 1, biases 0."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._pool: Tensor | None = None
        self._place = 0

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
        """Return a function that makes it."""
        if len(shape) < 2:
            value = 0.0 if name.endswith(("bias", "mean")) else 1.0
            return lambda: torch.full(shape, value, dtype=dtype)
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        return lambda: self._cut(math.prod(shape), scale).reshape(shape).to(dtype)

    def _cut(self, count: int, scale: float) -> Tensor:
        """Return the next values of the pool, which is drawn once: 6 billion numbers would take minutes."""
        if self._pool is None:
            self._pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(self.seed))
        first, self._place = self._place, (self._place + count) % _POOL
        rolled = torch.cat((self._pool[first:], self._pool[:first])) * scale
        return rolled.repeat(-(-count // _POOL))[:count]


def _rename_as_transformers(folder: Path) -> None:
    """`model.safetensors` and `model-00001-of-00003.safetensors`, where diffusers has other names."""
    for path in sorted(folder.glob(f"{WEIGHTS}*")):
        new = path.with_name(path.name.replace(WEIGHTS, "model", 1))
        if path.suffix == ".json":
            path.write_text(
                path.read_text(encoding="utf-8").replace(f'"{WEIGHTS}-', '"model-'), encoding="utf-8"
            )
        path.rename(new)


def _write_config(module: Any, part: Component, folder: Path) -> None:
    if part.library == "transformers":
        module.config.architectures = [part.class_name]
        module.config.save_pretrained(folder)
    else:
        module.save_config(folder)


def _parts_like(directory: Path) -> Iterator[tuple[str, Component]]:
    """Yield the components of a pipeline directory, by its configs; its weights are not read."""
    index = read_json(directory / "model_index.json", "give a diffusers directory")
    for name, entry in index.items():
        config = directory / name / "config.json"
        if not isinstance(entry, list) or not config.is_file() or name in _COPIED:
            continue
        values = read_json(config, "give a diffusers directory")
        library, class_name = entry
        dtype = getattr(torch, str(values.get("torch_dtype") or values.get("dtype") or "bfloat16"))
        kept = {key: value for key, value in values.items() if library == "transformers" or key[:1] != "_"}
        for key in ("architectures", "torch_dtype", "dtype", "transformers_version"):
            kept.pop(key, None)
        yield name, Component(library=library, class_name=class_name, config=kept, dtype=dtype)


def _copy_rest(like: Path, out: Path) -> None:
    """Copy what has no weights, and the index, byte for byte."""
    for path in sorted(like.iterdir()):
        if path.is_dir() and not (out / path.name).exists() and not any(path.glob("*.safetensors")):
            shutil.copytree(path, out / path.name)
    shutil.copy2(like / "model_index.json", out / "model_index.json")


def _write_rest(found: Recipe, parts: Mapping[str, Component], out: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for name, longest in found.tokenizers.items():
        byte_tokenizer(longest).save_pretrained(out / name)
    FlowMatchEulerDiscreteScheduler(**found.scheduler).save_pretrained(out / "scheduler")
    index: dict[str, Any] = {"_class_name": found.pipeline, "scheduler": ["diffusers", _SCHEDULER]}
    index |= {name: [part.library, part.class_name] for name, part in parts.items()}
    index |= {name: ["transformers", "PreTrainedTokenizerFast"] for name in found.tokenizers}
    write_json(out / "model_index.json", index)


_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def byte_tokenizer(longest: int) -> Any:
    """Return a fast tokenizer with a chat template whose tokens are bytes: prompts are about four times as
    long as with a trained one, up to `longest` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", vocabulary["<|im_end|>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=special[1:],
        model_max_length=longest,
    )
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast
