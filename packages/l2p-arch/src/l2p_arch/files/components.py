"""What goes along from one pipeline directory to the next: text encoders, tokenizers, scheduler, licences."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_arch.files.directories import read_json, write_json
from l2p_arch.files.tensor_files import VARIANT_FILE
from l2p_arch.files.tensor_writing import copy_range

_LICENCES = ("LICENSE", "LICENSE.md")
_CONFIG_KEYS = ("family", "trunk_config", "patch_size", "head_channels")


def copy_components(source: Path, names: Sequence[str], out: Path) -> None:
    """Take components of a pipeline along (text encoders, scheduler), and write the index of an
    L2PPipeline."""
    source_index = read_json(source / "model_index.json", f"{source} is no diffusers pipeline directory")
    for name in names:
        # Not shutil.copytree, whose error does not say that the disk is full.
        for folder, _, files in os.walk(source / name, onerror=_raise, followlinks=True):
            copied = out / Path(folder).relative_to(source)
            copied.mkdir(parents=True)
            _copy_folder(Path(folder), files, copied)
    for name in _LICENCES:
        if (source / name).is_file():
            copy_file(source / name, out / name)
    index: dict[str, Any] = {"_class_name": "L2PPipeline", "transformer": ["l2p_arch", "L2PTransformer"]}
    if "_diffusers_version" in source_index:
        index["_diffusers_version"] = source_index["_diffusers_version"]
    write_json(out / "model_index.json", index | {name: source_index[name] for name in names})


def _raise(error: OSError) -> None:
    raise error


def _copy_folder(source: Path, files: Sequence[str], out: Path) -> None:
    """Copy files; weights that are there as a variant only, such as "fp16", lose its name, which whoever
    loads the result would have to know."""
    matches = [match for file in files if (match := VARIANT_FILE.fullmatch(file)) and match["variant"]]
    variants, stems = ({match[part] for match in matches} for part in ("variant", "stem"))
    # Shards and their index begin alike: "model-00001-of-00002.safetensors", "model.safetensors.index.json".
    plain = any(
        file.startswith((f"{stem}-", f"{stem}.safetensors")) and not VARIANT_FILE.fullmatch(file)
        for file in files
        for stem in stems
    )
    if len(variants) > 1 and not plain:
        found = ", ".join(sorted(variants))
        raise ArchError(f"{source} holds the variants {found} and no plain weights; keep one of them")
    for file in files:
        name = file if plain else _plain_name(file)
        if name != file and name.endswith(".json"):
            _write_plain_index(source / file, out / name)
        else:
            copy_file(source / file, out / name)


def _plain_name(file: str) -> str:
    """Return the name of weights, or of the index of their shards, without a variant."""
    match = VARIANT_FILE.fullmatch(file)
    if match is None:
        return file
    if match["index"]:
        return f"{match['stem']}{match['index']}.json"
    return f"{match['stem']}{match['shard'] or ''}{match['suffix']}"


def _write_plain_index(source: Path, target: Path) -> None:
    index = read_json(source, f"{source.parent} is damaged")
    names = index.get("weight_map")
    if not isinstance(names, dict):
        raise ArchError(f"{source} is no index of shards: it holds no weight_map")
    write_json(target, index | {"weight_map": {key: _plain_name(str(name)) for key, name in names.items()}})


def components_to_keep(source: Path, text_components: Sequence[str], family: str) -> list[str]:
    """Return the scheduler and those text components that the pipeline has; some sources are saved without
    their largest."""
    index = read_json(source / "model_index.json", f"{source} is no diffusers pipeline directory")
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list | dict) and not _names_a_class(entry):
            raise ArchError(
                f"{source / 'model_index.json'}: {name} is {entry}; wanted [library, class] or [null, null]"
            )
    left_out = {name for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    names = [name for name in (*text_components, "scheduler") if name not in left_out]
    missing = [name for name in names if name not in index or not (source / name).is_dir()]
    if missing:
        raise ArchError(f"{source} lacks {', '.join(missing)}, which a {family} pipeline needs")
    return names


def _names_a_class(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(e is None or isinstance(e, str) for e in entry)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy; never a hard link, through which a later save into the target would write into the source's own
    file."""
    with Path(source).open("rb") as reader, Path(target).open("wb") as writer:
        copy_range(reader, 0, os.fstat(reader.fileno()).st_size, writer)


def read_model_config(model: Path) -> dict[str, Any]:
    """Return the transformer's config of an L2P model directory, or an ArchError for a directory of another
    kind.
    """
    if (model / "model" / "transformer").is_dir() and not (model / "transformer").exists():
        raise ArchError(f"{model} is a run, and not its model; give {model / 'model'}")
    config = read_json(model / "transformer" / "config.json", f"{model} is no L2P model directory")
    lacking = [key for key in _CONFIG_KEYS if key not in config]
    if lacking:
        raise ArchError(
            f"{model} is no L2P model directory: its transformer's config lacks {', '.join(lacking)}; "
            "make one with convert"
        )
    return config


def recipe_of(config: Mapping[str, Any]) -> str:
    """Return the recipe of a model config: "paper" or "aligned"."""
    return "aligned" if config.get("alignment") else "paper"


def name_of(path: Path) -> str:
    """Return what to call a directory or file in a report: its own name, or the repository's in a hub's
    cache.
    """
    path = path.absolute()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return path.resolve().name if path.name in ("", "..") else path.name
