"""The checks before a run: all that its stages need is there and fits together. Nothing is written."""

from collections.abc import Callable, Iterator

from l2p_eval.metrics.features import check_extractor
from l2p_run.places import shorten
from l2p_run.stages import read_marker

from l2p_transfer.config import Config
from l2p_transfer.detectors import check_detector
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.storage import RunStorage
from l2p_transfer.validation import check_sampling


def check_inputs(config: Config) -> None:
    """Raise the first thing that would make a stage fail later, before anything is written."""
    for problem in problems(config):
        raise problem


def problems(config: Config) -> Iterator[Exception]:
    """Yield everything that the stages need and cannot find."""
    checks: tuple[Callable[[Config], None], ...] = (
        lambda config: RunStorage(config, RunPaths(config.run.output)).reachable(),
        _check_source,
        check_sampling,
        lambda config: config.prompts.check_files(),
        lambda config: check_detector(config.evaluate),
        lambda config: check_extractor(config.evaluate.features, "evaluate.features"),
        _check_metadata,
        _check_gpus,
    )
    for check in checks:
        try:
            check(config)
        except ValueError as error:
            yield error


def _check_source(config: Config) -> None:
    from l2p_arch.surgery.recipes import check_vae
    from l2p_arch.surgery.source import open_source

    if not config.source.model.is_dir():
        raise TransferError(
            f"source.model {shorten(config.source.model)} does not exist; give a diffusers directory"
        )
    source = open_source(config.source.model)
    if config.surgery.recipe == "aligned":
        check_vae(source)


def _check_metadata(config: Config) -> None:
    from l2p_eval.geneval import read_metadata

    read_metadata(config.evaluate.metadata)


def _check_gpus(config: Config) -> None:
    from l2p_train.machine.processes import usable_gpus

    if read_marker(config.run.output, "training").get("state") == "done":
        return  # what is left may run on a smaller machine
    check_processes(config, usable_gpus())


def check_processes(config: Config, gpus: int) -> None:
    """Raise for a training of more processes than this machine's GPUs: hours of painting come before it.

    Args:
        gpus: 0 on a CPU, which takes any number.
    """
    if not config.cluster.address and 0 < gpus < config.processes:
        raise TransferError(
            f"train.processes is {config.processes}, this machine has {gpus} GPU{'' if gpus == 1 else 's'};"
            f" give {gpus} or fewer, or the cluster.address of a cluster"
        )
