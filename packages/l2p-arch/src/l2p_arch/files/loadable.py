"""Whether a pipeline directory can be loaded, found out from its small files and headers, before any library
is asked and in one line.

Libraries answer damage with tracebacks of many kinds, and some damage not at all: where a tensor is missing
they draw a random one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_arch.files.directories import read_json
from l2p_arch.files.tensor_files import read_header
from l2p_arch.source_formats import SOURCE_FORMATS

PIXEL_PIPELINE = "L2PPipeline"
AGAIN = "fetch or write the model again"
_LIBRARIES = ("diffusers", "transformers", "l2p_arch")
_WEIGHTS_INDEX = re.compile(r".+\.safetensors\.index(\.[^.]+)?\.json")
_COMPONENT = re.compile(r"(transformer|unet|scheduler|vae|text_encoder|tokenizer)(_\d+)?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NEVER_EMPTY = (".json", ".jinja", ".model", ".safetensors")
_VOCABULARY = re.compile(r"tokenizer\.json|vocab\..+|.+\.model|.+\.tiktoken")


def read_index(directory: Path) -> dict[str, Any]:
    """Return the content of model_index.json.

    Raises:
        ArchError: it is missing, damaged, or names code that no library brings.
    """
    path = directory / "model_index.json"
    index = _read(path, f"{directory} is no pipeline directory")
    if not isinstance(index.get("_class_name"), str):
        own = isinstance(index.get("_class_name"), list)
        what = "names a pipeline class of its own code, which is never run" if own else "names no pipeline"
        raise ArchError(f"{path} {what}; {AGAIN}")
    for name, entry in components_of(index).items():
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)):
            raise ArchError(f"{path}: {name} is {_short(entry)}; wanted [library, class]; {AGAIN}")
        if Path(name).name != name:
            raise ArchError(f"{path} names the component {_short(name)}, which lies elsewhere; {AGAIN}")
        if entry[0] not in _LIBRARIES and not _is_a_pipeline_module(entry[0]):
            raise ArchError(
                f"{path}: {name} is of {_short(entry[0])}, whose code is never run; known: "
                f"{', '.join(_LIBRARIES)}"
            )
    return index


def components_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the components that a pipeline has, of those that its index names."""
    return {
        name: entry
        for name, entry in index.items()
        if (isinstance(entry, list | dict) or _COMPONENT.fullmatch(name))
        and not name.startswith("_")
        and entry not in (None, [None, None])
    }


def check_loadable(directory: Path) -> dict[str, Any]:
    """Refuse a pipeline directory that libraries could not load, or would fill with random weights.

    Returns:
        The content of its model_index.json.

    Raises:
        ArchError: what is missing or damaged, and where.
    """
    index = read_index(directory)
    if index["_class_name"] == PIXEL_PIPELINE:
        check_model_config(directory / "transformer")
    for name, (_, class_name) in components_of(index).items():
        folder = directory / name
        if not folder.is_dir():
            raise ArchError(f"{directory} lacks {name}/, which its model_index.json names; {AGAIN}")
        _check_files(folder)
        _check_component(folder, str(class_name))
    return index


def check_model_config(transformer: Path) -> dict[str, Any]:
    """Return the config of an L2P model's transformer.

    Raises:
        ArchError: it is missing or damaged, or a value is of the wrong kind.
    """
    path = transformer / "config.json"
    config = _read(path, f"{transformer.parent} is damaged")
    wanted = {
        "family": (str(config.get("family")) in SOURCE_FORMATS, f"one of {', '.join(SOURCE_FORMATS)}"),
        "patch_size": (_is_count(config.get("patch_size", 16)), "a number of pixels, such as 16"),
        "trunk_config": (isinstance(config.get("trunk_config"), dict), "the source transformer's config"),
        "head_channels": (
            isinstance(channels := config.get("head_channels", []), list) and all(map(_is_count, channels)),
            "a list of widths",
        ),
    }
    if (scales := config.get("guidance_range")) is not None:
        right = isinstance(scales, list) and len(scales) == 2 and all(map(_is_number, scales))
        wanted["guidance_range"] = (right and 1 <= scales[0] < scales[1], "two scales, such as [1, 4]")
    for key, (right, words) in wanted.items():
        if not right:
            given = f"is {_short(config[key])}" if key in config else "is missing"
            raise ArchError(f"{path} is damaged: {key} {given}; wanted {words}; {AGAIN}")
    return config


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 20


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_a_pipeline_module(name: str) -> bool:
    """Return whether diffusers has pipelines of that name, which may bring classes ("stable_diffusion")."""
    import importlib.util

    import diffusers.pipelines

    if not name.isidentifier():
        return False
    return importlib.util.find_spec(f"{diffusers.pipelines.__name__}.{name}") is not None


def _check_files(folder: Path) -> None:
    """Refuse files that this user may not open, which libraries take for missing ones, damaged JSON and
    weights that are cut off."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        _check_open(path)
        if path.suffix in _NEVER_EMPTY and not path.stat().st_size:
            raise ArchError(f"{path} is empty; {AGAIN}")
        if _WEIGHTS_INDEX.fullmatch(path.name):
            _check_shards(path)
        elif path.suffix == ".safetensors":
            read_header(path)
        elif path.name.endswith("config.json"):
            _read(path, f"{folder} is damaged")


def _check_open(path: Path) -> None:
    try:
        path.open("rb").close()
    except FileNotFoundError:
        pass  # whoever reads it says what that means
    except OSError as error:
        remedy = "its owner can allow it, with chmod" if isinstance(error, PermissionError) else "mend that"
        raise ArchError(f"cannot open {path}: {error.strerror}; {remedy}") from error


def _read(path: Path, complaint: str) -> dict[str, Any]:
    """As `read_json`, with the remedy for what is damaged and not for what is closed to this user."""
    _check_open(path)
    try:
        return read_json(path, complaint)
    except ArchError as error:
        raise ArchError(f"{error}; {AGAIN}") from error


def _check_shards(index: Path) -> None:
    shards = _read(index, f"{index.parent} is damaged").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ArchError(f"{index} is no index of shards: it holds no weight_map; {AGAIN}")
    for name in sorted(set(shards.values())):
        if Path(name).name != name:
            raise ArchError(f"{index} names {_short(name)}, which is not a file beside it; {AGAIN}")
        if not (index.parent / name).is_file():
            raise ArchError(f"{index.parent} lacks {name}, which its index of shards names; {AGAIN}")
    held = {name: read_header(index.parent / name)[0] for name in set(shards.values())}
    for tensor, name in shards.items():
        if tensor not in held[name]:
            raise ArchError(f"{index} names {_short(tensor)}, which {name} does not hold; {AGAIN}")


def _check_component(folder: Path, class_name: str) -> None:
    names = [path.name for path in folder.iterdir()]
    if "config.json" in names and not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith(_PICKLES)]
        what = (
            f"holds pickled weights ({min(pickles)}), which are never loaded" if pickles else "has no weights"
        )
        remedy = "save it as safetensors" if pickles else AGAIN
        raise ArchError(f"{folder} {what}; {remedy}")
    if "Token" in class_name and not any(_VOCABULARY.fullmatch(name) for name in names):
        raise ArchError(f"{folder} has no tokenizer.json, nor another vocabulary; {AGAIN}")
    if not any(name.endswith(".json") for name in names):
        raise ArchError(f"{folder} has no config; {AGAIN}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
