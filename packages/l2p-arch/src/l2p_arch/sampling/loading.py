"""Load the pipeline of a directory, pixel-space or latent, so that damage is one line and never a random
weight."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError, reason
from l2p_arch.files.loadable import AGAIN, PIXEL_PIPELINE, check_loadable, components_of
from l2p_arch.files.mapping import loading_options
from l2p_arch.files.tensor_files import read_header
from l2p_arch.libraries import quiet_libraries


def load_pipeline(
    directory: Path | str,
    *,
    device: str,
    dtype: str,
    cpu_offload: bool = False,
    tile: int | None = None,
    disable_mmap: bool | None = None,
) -> Any:
    """Return the pipeline of a model directory, an L2PPipeline or a source's own, loaded without network or
    pickles.

    Args:
        device: "cpu", "cuda", "cuda:1".
        dtype: "float32", "bfloat16" or "float16".
        cpu_offload: text encoders and transformer are on the device by turns.
        tile: px, of the Detailer Head's tiles; None runs it whole.
        disable_mmap: load by plain reads, for network and FUSE mounts; None: as L2P_DISABLE_MMAP says.

    Raises:
        ArchError: files of the model are missing or damaged, or the device cannot be used.
    """
    import torch
    from diffusers import DiffusionPipeline

    from l2p_arch.sampling.pipeline import L2PPipeline

    quiet_libraries()
    directory = Path(directory)
    index = check_loadable(directory)
    kind = L2PPipeline if index["_class_name"] == PIXEL_PIPELINE else DiffusionPipeline
    options = {"dtype": getattr(torch, dtype), "local_files_only": True, "use_safetensors": True}
    options |= loading_options(disable_mmap)
    try:
        models = _load_models(directory, index, options)
        pipeline = kind.from_pretrained(directory, **models, **options)
    except (ArchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the many loaders of three libraries raise for damaged files
        raise ArchError(f"{directory} cannot be loaded ({reason(error)}); {AGAIN}") from error
    try:
        if cpu_offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise ArchError(f"the device {device} cannot be used: {reason(error)}") from error
    transformer: Any = getattr(pipeline, "transformer", None)
    if tile is not None and hasattr(transformer, "enable_head_tiling"):
        transformer.enable_head_tiling(tile)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_models(directory: Path, index: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pipeline's networks, each checked to have found every one of its tensors: the libraries
    only warn, and go on with random numbers.

    A component of a class that its library does not export is left to the pipeline.
    """
    import diffusers
    import transformers

    import l2p_arch.model

    libraries = {"l2p_arch": l2p_arch.model, "diffusers": diffusers, "transformers": transformers}
    networks: Any = (diffusers.ModelMixin, transformers.PreTrainedModel)
    models = {}
    for name, entry in components_of(index).items():
        kind: Any = getattr(libraries.get(entry[0]), entry[1], None)
        is_network = isinstance(kind, type) and issubclass(kind, networks)
        if not is_network:
            continue
        if entry[0] == "transformers":
            _refuse_another_size(kind, directory / name)
        model, found = kind.from_pretrained(directory / name, output_loading_info=True, **options)
        absent = set(found["missing_keys"])
        missing = [key for key, value in model.named_parameters() if key in absent or value.is_meta]
        wrong = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
        strange = list(found["unexpected_keys"]) if entry[0] == "l2p_arch" else []
        for keys, what in ((missing, "lack"), (wrong, "have another shape for"), (strange, "do not fit")):
            if keys:
                raise ArchError(
                    f"the weights in {directory / name} {what} {len(keys)} of the tensors that its config "
                    f"describes, such as {keys[0]}; {AGAIN}"
                )
        models[name] = model
    return models


def _refuse_another_size(kind: Any, folder: Path) -> None:
    """Refuse a config that describes a far larger network than the weights are: transformers takes defaults
    for what a damaged config lacks, which are those of a model of billions, and draws what it does not find.
    """
    import torch

    with torch.device("meta"):
        described = sum(each.numel() for each in kind(kind.config_class.from_pretrained(folder)).parameters())
    headers = [read_header(path)[0] for path in folder.glob("*.safetensors")]
    stored = sum(prod(tensor.shape) for header in headers for tensor in header.values())
    if described > 4 * stored:  # weights of 4 bits are stored two in a number
        raise ArchError(
            f"{folder / 'config.json'} describes a network of {described:,} parameters, and the weights "
            f"beside it are {stored:,}; {AGAIN}"
        )
