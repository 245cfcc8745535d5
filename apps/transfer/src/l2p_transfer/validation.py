"""What a table of the config cannot know alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError
from l2p_arch.sampling.call_options import check_call
from l2p_data.errors import DataError
from l2p_run.places import is_address
from l2p_train.errors import TrainError

from l2p_transfer.errors import TransferError
from l2p_transfer.sizes import painted_sizes

if TYPE_CHECKING:
    from l2p_transfer.config import Config

OF_AN_ABLATION = ("ablation", "extends", "arm", "claim", "data")
"""Keys of the configs of l2p-ablate that a transfer does not have."""


def check_kind(tables: Mapping[str, Any], path: Path) -> None:
    """Raise for a file of the neighbour's."""
    if found := next((name for name in OF_AN_ABLATION if name in tables), None):
        raise TransferError(
            f"{path} is for l2p-ablate (it has {found!r}); give that command the file, or this one a config"
            " such as configs/mini.toml"
        )


def check_storage(storage: str | None) -> None:
    """Raise for what is no address; the trainer would speak of its own settings, which follow from it."""
    if storage is not None and not is_address(storage):
        raise TransferError(f"run.storage is {storage!r}; it must be an address such as s3://bucket/run")


def check_config(config: "Config") -> None:
    """Raise for the first setting that does not go with another.

    Raises:
        TransferError: what was given, what was wanted, what to write.
    """
    _check_sizes(config)
    try:
        config.prompts.check()
        config.surgery.check(config.train)
    except (DataError, ArchError, TrainError) as error:
        raise TransferError(str(error)) from None
    config.cluster.check()
    check_held_out(config, config.prompts.count)
    if config.processes:  # auto always divides
        try:
            config.train.batch_layout(config.processes)
        except TrainError as error:
            raise TransferError(f"train.{error}") from None


def check_held_out(config: "Config", prompts: int) -> None:
    """Raise where the held-out images would leave none to train on, which the trainer says after painting.

    Whole prompts are held out.

    Args:
        prompts: how many are painted, or the most that can be.
    """
    held, seeds = config.train.validation_images, config.images.seeds_per_prompt
    if held > (most := (prompts - 1) * seeds):
        raise TransferError(
            f"train.validation_images is {held:,}, and {prompts:,} prompts with images.seeds_per_prompt"
            f" {seeds} are {prompts * seeds:,} images; use {most:,} or fewer, so that one prompt is left to"
            " train on"
        )


def check_sampling(config: "Config") -> None:
    """Raise for an argument that the source's pipeline does not take, where the source is there."""
    extra = config.source.pipeline_kwargs
    check_call(
        config.source.model,
        {
            name: f"source.pipeline_kwargs.{name}" if name in extra else f"source.{name}"
            for name in config.source.sampling
        },
        what="the source's",
    )


def _check_sizes(config: "Config") -> None:
    """Check that every side which reaches the model in patches is be a multiple of them."""
    images, evaluate, patch = config.images, config.evaluate, config.surgery.patch_size
    try:
        painted = painted_sizes(config)
    except DataError as error:
        raise TransferError(str(error)) from None
    if config.train.resolution is not None:  # the trainer resizes
        _check_side("train.resolution", config.train.resolution, patch)
    elif images.buckets is None:
        _check_side("images.width", images.width, patch)
        _check_side("images.height", images.height, patch)
    else:
        for text, (width, height) in zip(images.buckets, painted, strict=True):
            _check_side(f"images.buckets {text!r}: width", width, patch)
            _check_side(f"images.buckets {text!r}: height", height, patch)
    if (evaluate.width is None) != (evaluate.height is None):
        given, missing = ("width", "height") if evaluate.height is None else ("height", "width")
        raise TransferError(f"evaluate.{given} is given without evaluate.{missing}; give both or neither")
    if evaluate.width is not None and evaluate.height is not None:
        _check_side("evaluate.width", evaluate.width, patch)
        _check_side("evaluate.height", evaluate.height, patch)
    elif images.buckets is not None:
        raise TransferError(
            "images.buckets trains at several sizes; say at which one to evaluate:"
            " evaluate.width and evaluate.height"
        )


def _check_side(name: str, length: int, patch: int) -> None:
    if length >= patch and length % patch == 0:
        return
    below, above = length // patch * patch, (length // patch + 1) * patch
    usable = f"{below} or {above}" if below > 0 else f"{max(above, patch)}"
    raise TransferError(f"{name} {length} is not a multiple of surgery.patch_size {patch}; use {usable}")
