"""Runs the stages: skips what is done, goes on with what is not, refuses a changed config, keeps two runs
apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from l2p_run import config_file, hashes, provenance, stages
from l2p_run.errors import UserError
from l2p_run.folder import lock
from l2p_run.folder.claimed_config import ClaimedConfig
from l2p_run.places import is_file, read_json_if_whole, write_json
from l2p_run.progress import Display
from l2p_run.stages import Stage, read_marker, run_stages
from l2p_train.config import changeable
from l2p_train.run.run_directory import steps_done

from l2p_transfer.config import Config, default_tables
from l2p_transfer.contents import contents, newest
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.stages import STAGES, Run
from l2p_transfer.storage import RunStorage

MAY_CHANGE = ("evaluate", "report")  # tables that --update may change in a run directory
OF_THE_CORPUS = ("prompts", "filter", "source", "images")  # tables that it may change until one is painted
_OF_THE_CLUSTER = (
    *("address", "cpus_per_process", "max_failures"),
    *("llm_resources", "synthesis_resources", "training_resources", "evaluation_resources"),
)
IRRELEVANT = (  # keys that change nothing in what a run makes
    *(("run", "output"), ("source", "repository")),
    *(("images", "workers"), ("images", "cpu_offload")),
    *(("evaluate", "workers"), ("evaluate", "cpu_offload")),
    *(("cluster", key) for key in _OF_THE_CLUSTER),
    *(("train", "corpus_cache"), ("train", "corpus_cache_gb")),
)
PACKAGES = (
    *("l2p-run", "l2p-arch", "l2p-data", "l2p-train", "l2p-eval", "l2p-transfer"),
    *("torch", "diffusers", "transformers", "deepspeed", "ray", "torchmetrics"),
)
"""Whose versions stand in provenance.json."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a finished command reports."""

    root: Path
    stages: Mapping[str, Mapping[str, Any]]  # name -> marker
    executed: Sequence[str]  # stages that ran now

    def to_row(self) -> dict[str, Any]:
        """Return JSON values, for --json."""
        return {
            "run": str(self.root),
            "report": str(RunPaths(self.root).report),
            "model": str(RunPaths(self.root).model),
            "executed": list(self.executed),
            "stages": dict(self.stages),
        }


def execute(config: Config, display: Display, *, command: Sequence[str], update: bool = False) -> RunSummary:
    """Run every stage that is not done.

    Args:
        command: the command line, for provenance.json.
        update: allow changes of what nothing that is done depends on; the stages they touch run again.

    Raises:
        UserError: the directory belongs to another config or another running process, or cannot be written.
    """
    paths = RunPaths(config.run.output)
    busy = f"another l2p-transfer is working in {paths.root}; wait for it, or choose another run.output"
    existed = paths.root.is_dir()
    with lock(paths.lock, busy=busy, remedy="choose another run.output"):
        storage = RunStorage(config, paths)
        storage.fetch([stage.name for stage in STAGES])
        try:
            _claim(config, paths, update)
        except UserError:
            if existed and not paths.config.is_file():  # a folder of somebody else's: leave nothing in it
                paths.lock.unlink(missing_ok=True)
            raise
        made_with = provenance.collect(command, PACKAGES, Path(__file__).parent)
        made_with["config_sha256"] = hashes.of_settings(config.to_tables())
        write_json(paths.provenance, made_with)
        executed = run_stages(
            list(identities(config)),
            paths.root,
            Run(config=config, paths=paths),
            display,
            goes_on=lambda name: name == "training" and steps_done(paths.train) > 0,
            intact=lambda name: _intact(name, paths),
            after=storage.keep,
        )
        markers = {stage.name: read_marker(paths.root, stage.name) for stage in STAGES}
        return RunSummary(root=paths.root, stages=markers, executed=executed)


def identities(config: Config) -> Iterator[tuple[Stage[Run], tuple[str, ...]]]:
    """Yield each stage with the hash of all that its output depends on, and the one of settings alone that
    earlier versions noted, unless a file that the stage, or one before it, reads was written since.
    """
    tables = config.identity_tables()
    for table, key in IRRELEVANT:
        tables[table].pop(key, None)
    settled, root = True, config.run.output
    known = stages.identities(STAGES, tables, lambda stage: contents(stage, config))
    for stage, (content, earlier) in known:
        settled = settled and not _read_since(stage.name, earlier, root, config)
        yield stage, (content, *([earlier] if settled else []))


def _read_since(stage: str, earlier: str, root: Path, config: Config) -> bool:
    """Return whether a stage that an earlier version noted as done reads a file that is younger than its
    note.
    """
    marker = read_marker(root, stage)
    if marker.get("identity") != earlier or marker.get("state") != "done":
        return False
    try:
        ended = datetime.fromisoformat(marker["ended"]).timestamp()
    except (KeyError, ValueError):
        return False
    return newest(stage, config) > ended + 1  # the note has whole seconds


def _intact(stage: str, paths: RunPaths) -> bool:
    """Return whether what a stage left is still there, where it is soon made again and a later stage reads
    it.
    """
    if stage == "evaluation":
        return read_json_if_whole(paths.results) is not None
    return stage != "report" or paths.report.is_file()


# ------------------------------------------------------------------------------------- the run directory


def check_unchanged(config: Config, update: bool) -> None:
    """Raise what `execute` would raise for a run directory that another config made; writes nothing."""
    paths = RunPaths(config.run.output)
    if is_file(paths.config):
        _claim_of(config, paths).check(update=update)
        _refuse_fewer_steps(config, paths)


def _claim(config: Config, paths: RunPaths, update: bool) -> None:
    """Write config.toml, or checks that the directory is this config's."""
    claim = _claim_of(config, paths)
    claim.check(update=update, ignored=(paths.lock.name,))
    _refuse_fewer_steps(config, paths)
    claim.write()


def _claim_of(config: Config, paths: RunPaths) -> ClaimedConfig:
    return ClaimedConfig(
        path=paths.config,
        tables=config.to_tables(),
        defaults=default_tables(),
        may_change=lambda table, key: _may_change(table, key, config, paths),
        irrelevant=IRRELEVANT,
    )


def _refuse_fewer_steps(config: Config, paths: RunPaths) -> None:
    if is_file(paths.config) and config.train.steps < (done := steps_done(paths.train)):
        raise TransferError(
            f"train.steps is {config.train.steps}, and {paths.root} has {done} steps already; choose another"
            " run.output"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (table, key, "table.key: old -> new") for every setting that differs and matters."""
    return config_file.differences(old, new, default_tables(), IRRELEVANT)


def _may_change(table: str, key: str, config: Config, paths: RunPaths) -> bool:
    """Return whether --update takes a change: nothing that took long and is there may depend on it.

    Prompts are soon written again, and an LLM's answers are kept. Surgery leaves all or nothing, and the
    training nothing before its first checkpoint, so that what it ran out of memory with can be changed.
    """
    if table in OF_THE_CORPUS:
        from l2p_data.corpus.files import has_shards

        painted = read_marker(paths.root, "images").get("state") == "done"
        return not (painted or has_shards(config.train.corpus))
    if table == "surgery":
        return read_marker(paths.root, "surgery").get("state") != "done"
    if table == "train":
        return key in changeable() or not steps_done(paths.train)
    return table in MAY_CHANGE
