"""Runs the stages: skips what is done, goes on with what is not, refuses a changed config, keeps two runs
apart.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from l2p_run import config_file
from l2p_run.config_file import read_toml, write_toml
from l2p_run.errors import UserError
from l2p_run.folder import lock
from l2p_run.places import is_file, read_json_if_whole, write_json
from l2p_run.progress import Display, say
from l2p_run.stages import Stage, read_marker, run_stages
from l2p_train.config import changeable

from l2p_transfer.config import Config, default_tables
from l2p_transfer.contents import contents, newest
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.provenance import collect_provenance
from l2p_transfer.stages import STAGES, Run
from l2p_transfer.storage import RunStorage

MAY_CHANGE = ("evaluate", "report")  # tables that --update may change in a run directory
OF_THE_CORPUS = ("prompts", "filter", "source", "images")  # tables that it may change until one is painted
IRRELEVANT = (
    ("run", "output"),
    ("source", "repository"),
    ("images", "workers"),
    ("images", "cpu_offload"),
    ("evaluate", "workers"),
    ("evaluate", "cpu_offload"),
    ("cluster", "address"),
    ("cluster", "cpus_per_process"),
    ("cluster", "max_failures"),
    ("cluster", "llm_resources"),
    ("cluster", "synthesis_resources"),
    ("cluster", "training_resources"),
    ("cluster", "evaluation_resources"),
    ("train", "corpus_cache"),
    ("train", "corpus_cache_gb"),
)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a finished command reports."""

    root: Path
    stages: Mapping[str, Mapping[str, Any]]  # name -> marker
    executed: Sequence[str]  # stages that ran now

    def to_row(self) -> dict[str, Any]:
        """For --json."""
        return {
            "run": str(self.root),
            "report": str(RunPaths(self.root).report),
            "model": str(RunPaths(self.root).model),
            "executed": list(self.executed),
            "stages": dict(self.stages),
        }


def execute(config: Config, display: Display, *, command: Sequence[str], update: bool = False) -> RunSummary:
    """Runs every stage that is not done.

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
        except TransferError:
            if existed and not paths.config.is_file():  # a folder of somebody else's: leave nothing in it
                paths.lock.unlink(missing_ok=True)
            raise
        write_json(paths.provenance, collect_provenance(config, command))
        executed = run_stages(
            list(identities(config)),
            paths.root,
            Run(config=config, paths=paths),
            display,
            goes_on=lambda name: name == "training" and _steps_done(paths) > 0,
            intact=lambda name: _intact(name, paths),
            after=storage.keep,
        )
        markers = {stage.name: read_marker(paths.root, stage.name) for stage in STAGES}
        return RunSummary(root=paths.root, stages=markers, executed=executed)


def identities(config: Config) -> Iterator[tuple[Stage[Run], tuple[str, ...]]]:
    """Each stage with its identities: a hash of all settings that its output depends on and of the content of
    all that it reads, earlier stages included; and the one of settings alone that earlier versions noted,
    unless a file that the stage, or one before it, reads was written since.
    """
    tables = config.identity_tables()
    for table, key in IRRELEVANT:
        tables[table].pop(key, None)
    content, settings, settled = hashlib.sha256(), hashlib.sha256(), True
    root = RunPaths(config.run.output).root
    for stage in STAGES:
        for table in stage.tables:
            row = json.dumps([table, tables[table]], sort_keys=True).encode()
            content.update(row)
            settings.update(row)
        if read := contents(stage.name, config):
            content.update(json.dumps([stage.name, read], sort_keys=True).encode())
        earlier = settings.hexdigest()[:16]
        settled = settled and not _read_since(stage.name, earlier, root, config)
        yield stage, (content.hexdigest()[:16], *([earlier] if settled else []))


def _read_since(stage: str, earlier: str, root: Path, config: Config) -> bool:
    """Whether a stage that an earlier version noted as done reads a file that is younger than its note."""
    marker = read_marker(root, stage)
    if marker.get("identity") != earlier or marker.get("state") != "done":
        return False
    try:
        ended = datetime.fromisoformat(marker["ended"]).timestamp()
    except (KeyError, ValueError):
        return False
    return newest(stage, config) > ended + 1  # the note has whole seconds


def _intact(stage: str, paths: RunPaths) -> bool:
    """Whether what a stage left is still there, where it is soon made again and a later stage reads it."""
    if stage == "evaluation":
        return read_json_if_whole(paths.results) is not None
    return stage != "report" or paths.report.is_file()


# ------------------------------------------------------------------------------------- the run directory


def _claim(config: Config, paths: RunPaths, update: bool) -> None:
    """Writes config.toml, or checks that the directory is this config's."""
    if is_file(paths.config):
        _refuse_changes(_known(paths), config, paths, update)
    elif foreign := sorted(path.name for path in paths.root.iterdir() if path.name != paths.lock.name):
        raise TransferError(
            f"{paths.root} is not empty ({foreign[0]}) and holds no run; choose another run.output"
        )
    write_toml(paths.config, config.to_tables())


def _known(paths: RunPaths) -> dict[str, Any] | None:
    """The config that made the run directory; None where the file is damaged.

    It is written again then, from the config that is given: each stage's identity, the corpus and the
    training know by themselves what they were made with.
    """
    try:
        return read_toml(paths.config)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        say(f"{paths.config} is damaged and is written again: {error}")
        return None


def check_unchanged(config: Config, update: bool) -> None:
    """Raises what `execute` would raise for a run directory that another config made; writes nothing."""
    paths = RunPaths(config.run.output)
    if is_file(paths.config):
        _refuse_changes(_known(paths), config, paths, update)


def _refuse_changes(old: Mapping[str, Any] | None, config: Config, paths: RunPaths, update: bool) -> None:
    new = config.to_tables()
    changes = [] if old is None else list(differences(old, new))
    fixed = [text for table, key, text in changes if not _may_change(table, key, config, paths)]
    if fixed:
        raise TransferError(
            f"{paths.root} was made with another config: {'; '.join(fixed)}."
            " Restore it, or choose another run.output"
        )
    if changes and not update:
        shown = "; ".join(text for _, _, text in changes)
        raise TransferError(
            f"{paths.root} was made with another config: {shown}. Restore it, choose another run.output,"
            " or add --update to redo what depends on it"
        )
    if (steps := new["train"].get("steps", 0)) < (done := _steps_done(paths)):
        raise TransferError(
            f"train.steps is {steps}, and {paths.root} has {done} steps already; choose another run.output"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(table, key, "table.key: old -> new") for every setting that differs and matters."""
    return config_file.differences(old, new, default_tables(), IRRELEVANT)


def _may_change(table: str, key: str, config: Config, paths: RunPaths) -> bool:
    """Whether --update takes a change: nothing that took long and is there may depend on it.

    Prompts are soon written again, and an LLM's answers are kept. Surgery leaves all or nothing, and the
    training nothing before its first checkpoint, so that what it ran out of memory with can be changed.
    """
    if table in OF_THE_CORPUS:
        return not _painted(config, paths)
    if table == "surgery":
        return read_marker(paths.root, "surgery").get("state") != "done"
    if table == "train":
        return key in changeable() or not _steps_done(paths)
    return table in MAY_CHANGE


def _painted(config: Config, paths: RunPaths) -> bool:
    """Whether the corpus has its first shard, here or at the run's address."""
    from l2p_data.corpus.files import folder_exists, location

    if read_marker(paths.root, "images").get("state") == "done":
        return True
    corpus = location(config.train.corpus)
    return folder_exists(corpus) and next(iter(corpus.glob("*.parquet")), None) is not None


def _steps_done(paths: RunPaths) -> int:
    """Steps of the newest checkpoint, 0 where there is none."""
    names = [folder.name for folder in (paths.root / "train" / "checkpoints").glob("step-*")]
    return max(
        (int(number) for name in names if (number := name.removeprefix("step-")).isdecimal()), default=0
    )
