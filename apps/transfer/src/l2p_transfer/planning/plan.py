"""`--dry-run`: what a config would do, counted on meta tensors. Nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l2p_plan.costs import Machine
from l2p_plan.model import ModelPlan, plan_model
from l2p_run.places import shorten
from l2p_run.sizes import in_words
from l2p_run.stages.plan import StagePlan, lines_of, plan_stages
from l2p_run.words import counted

from l2p_transfer.config import Config
from l2p_transfer.paths import RunPaths
from l2p_transfer.planning.described import describe
from l2p_transfer.planning.inputs import problems
from l2p_transfer.runner import identities
from l2p_transfer.sizes import evaluated_size, painted_sizes, source_size, trained_sizes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What --dry-run prints."""

    run: str
    source: str
    model: ModelPlan | None
    stages: Sequence[StagePlan]
    problems: Sequence[str]

    def to_row(self) -> dict[str, Any]:
        """Return JSON values, for --json."""
        return asdict(self)

    def text(self) -> str:
        """Return text for people."""
        lines = [f"run directory   {self.run}", f"source model    {self.source}"]
        if self.model:
            lines += self.model.text()
        return "\n".join([*lines, "", "stages", *lines_of(self.stages), "", "Nothing was written."])


def make_plan(config: Config, machine: Machine | None = None) -> Plan:
    """Count what can be counted; what is missing is listed in `problems`, not raised.

    Args:
        machine: the GPU that hours are computed for; by default an H100 at 40 % of its peak.
    """
    missing = [str(error) for error in problems(config)]
    known = config.source.model.is_dir() or config.source.family
    return Plan(
        run=str(shorten(config.run.output)),
        source=str(shorten(config.source.model)),
        model=plan_model(describe(config), machine) if known else None,
        stages=list(plan_stages(identities(config), config.run.output, _work(config))),
        problems=missing,
    )


def _work(config: Config) -> Mapping[str, tuple[str, Path | str]]:
    """Return what each stage does, and where its output goes."""
    paths, prompts, train = RunPaths(config.run.output), config.prompts, config.train
    painted, trained = painted_sizes(config), trained_sizes(config)
    resized = "" if trained == painted else f", resized to {in_words(trained)}"
    source, l2p = in_words([source_size(config)]), in_words([evaluated_size(config)])
    return {
        "prompts": (f"{prompts.count:,} prompts, engine {prompts.engine}", paths.prompts),
        "filter": ("keep or drop, with a reason", paths.filtered),
        "images": (
            f"{counted(prompts.count * config.images.seeds_per_prompt, 'image')} of {in_words(painted)}",
            train.corpus,
        ),
        "surgery": (config.surgery.in_words(), paths.initial),
        "training": (f"{train.steps:,} steps of {counted(train.batch_size, 'image')}{resized}", paths.train),
        "evaluation": (
            f"{counted(config.evaluate.images_per_prompt, 'image')} a prompt, {l2p}"
            + ("" if source == l2p else f"; of the source {source}"),
            paths.evaluation,
        ),
        "report": ("report.html, report.md", paths.report),
    }
