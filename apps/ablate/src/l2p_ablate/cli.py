"""`l2p-ablate configs/ablations/NAME.toml`: arms x seeds, with spread, chart and verdict.

Exit codes: 0 done, 1 a bug, 2 usage, config or input, 3 the budget ran out first (or a training failed),
130/143 interrupted. Running the same command again goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p_run.command import NOT_REACHED, Parser, number, out, quiet_libraries, run_command

_INTERVAL = 30.0  # s between lines of progress where there is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(given))


def _run(given: Sequence[str]) -> int:
    options = _parser().parse_args(given)
    quiet_libraries()
    from l2p_ablate.config import load_config

    config = load_config(options.config, _overrides(options))
    if options.dry_run:
        return _dry_run(config, options.output / options.config.stem)
    return _execute(config, options, ["l2p-ablate", *given])


def _execute(config: Any, options: argparse.Namespace, command: Sequence[str]) -> int:
    import json

    from l2p_eval.report.arm_charts import publish_arms
    from l2p_eval.report.arms import table
    from l2p_run.progress import Counter
    from l2p_train.machine.processes import choose_accelerator

    from l2p_ablate.runner import execute

    choose_accelerator()
    root = options.output / options.config.stem
    with Counter(interval=_INTERVAL) as counter:
        summary = execute(
            config,
            root,
            options.output / "shared",
            command=command,
            workers=options.workers,
            say=counter.say,
            progress=counter.note,
        )
    if options.publish:
        publish_arms(root, options.publish, options.config.stem)
    out(json.dumps(summary, indent=1) if options.json else table(summary))
    return 0 if summary["complete"] else NOT_REACHED


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    ablation: dict[str, Any] = {}
    if options.seeds is not None:
        ablation["seeds"] = list(range(options.seeds))
    if options.budget is not None:
        ablation["budget_minutes"] = options.budget
    return {"ablation": ablation} if ablation else {}


def _dry_run(config: Any, root: Path) -> int:
    """Print the plan, after every check that the run itself would make first."""
    from l2p_ablate.runner import check

    check(config)
    ablation = config.ablation
    lines = [
        f"{ablation.title} ({ablation.paper})",
        f"claim     {ablation.claim}",
        f"runs      {len(config.arm)} arms x {len(ablation.seeds)} seeds",
        f"budget    {ablation.budget_minutes:g} min",
        f"output    {root}",
    ]
    for arm in config.arm:
        settings = config.train_config(arm, seed=0, model=Path("m"), corpus=Path("c"), output=Path("o"))
        data = config.data[config.data_of(arm)]
        lines.append(
            f"  {arm.name:18} {settings.steps} steps of {settings.batch_size},"
            f" trainable {settings.trainable},"
            f" {data.prompts * data.images_per_prompt} images of {config.data_of(arm)}"
        )
    out("\n".join([*lines, "Nothing was written."]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="l2p-ablate",
        package="l2p-ablate",
        description="One of the paper's ablations on the miniature: arms x seeds, spread, chart, verdict."
        " Run the same command again to resume.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 3 out of budget or a loss that is not finite,"
        " 130/143 interrupted.",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a TOML file of configs/ablations/")
    output = "gets NAME/, the results, and shared/, what ablations have in common (default: %(default)s)"
    add("-o", "--output", type=Path, metavar="DIR", default=Path("runs/ablations"), help=output)
    several = "seeds 0 to N-1 instead of the config's"
    add("--seeds", type=number(int, ge=1, le=10_000), metavar="N", help=several)
    add("--budget", type=number(float, gt=0), metavar="MINUTES", help="instead of the config's")
    workers = "processes; default one per GPU or core; 0 paints in this one"
    add("--workers", type=number(int, ge=0, le=10_000), metavar="N", help=workers)
    copied = "copy results and charts there, as NAME.json and NAME.png"
    add("--publish", type=Path, metavar="DIR", help=copied)
    add("--dry-run", action="store_true", help="check everything, print the plan and write nothing")
    add("--json", action="store_true", help="print results.json instead of the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
