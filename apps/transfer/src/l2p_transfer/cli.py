"""`l2p-transfer CONFIG`: prompts -> filter -> images -> surgery -> training -> evaluation -> report.

Exit codes: 0 done, 1 a bug, 2 usage, config or input, 3 training failed (the loss is not a number), 130/143
interrupted. Running the same command again goes on where it stopped.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from l2p_run.command import NOT_REACHED, USAGE_ERROR, Parser, number, out, quiet_libraries, run_command

if TYPE_CHECKING:
    from l2p_transfer.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(_parser().parse_args(given), ["l2p-transfer", *given]))


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    from l2p_train.machine.processes import choose_accelerator

    from l2p_transfer.config import load_config
    from l2p_transfer.planning.inputs import check_inputs

    config = load_config(options.config, options.set)
    quiet_libraries()
    choose_accelerator()
    if options.dry_run:
        from l2p_plan.costs import Machine
        from l2p_run.progress import say

        from l2p_transfer.planning.plan import make_plan

        plan = make_plan(config, Machine(gpu=options.gpu, utilisation=options.utilisation))
        out(json.dumps(plan.to_row(), indent=1) if options.json else plan.text())
        for problem in plan.problems:
            say(f"error: {problem}")
        from l2p_transfer.runner import check_unchanged

        check_unchanged(config, options.update)
        return USAGE_ERROR if plan.problems else 0
    if options.rehearse:
        return _rehearse(config, options, command)
    check_inputs(config)
    from l2p_run.progress import choose_display

    from l2p_transfer.runner import execute

    display = choose_display()
    try:
        summary = execute(config, display, command=command, update=options.update)
    finally:
        display.close()
    out(
        json.dumps(summary.to_row(), indent=1)
        if options.json
        else _where(summary.root, bool(summary.executed))
    )
    return 0


def _rehearse(config: "Config", options: argparse.Namespace, command: Sequence[str]) -> int:
    """Run --rehearse; exit code 3 if the whole run would not fit here, or resuming was not exact."""
    from l2p_run.progress import choose_display

    from l2p_transfer.planning.rehearsal import Options, rehearse

    display = choose_display()
    chosen = Options(depth=options.rehearse_depth, size=options.rehearse_size, keep=options.rehearse_keep)
    try:
        table = rehearse(config, chosen, display, command)
    finally:
        display.close()
    out(json.dumps(table.to_row(), indent=1) if options.json else table.text())
    return NOT_REACHED if table.problems or not table.resumed_alike else 0


def _where(root: Path, executed: bool) -> str:
    """Return where to look, at the end of a run."""
    from l2p_run.places import shorten

    from l2p_transfer.paths import RunPaths

    paths = RunPaths(root)
    shown = shorten(root)
    return "\n".join(
        [
            "\nDone." if executed else "\nAll stages are done; nothing was left to do.",
            f"  report    {shown / paths.report.name}  (and report.md)",
            f"  pictures  {shown / 'samples'}{os.sep}",
            f"  model     {shown / 'model'}{os.sep}",
            f'\nPaint with it:  l2p-generate --model {shown} "your prompt" -o out.png',
        ]
    )


def _parser() -> Parser:
    parser = Parser(
        prog="l2p-transfer",
        package="l2p-transfer",
        description="Turn a latent diffusion model into a pixel-space one: prompts, filter, images, surgery,"
        " training, evaluation, report. Run the same command again to resume.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 3 training failed, 130/143 interrupted.",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a TOML file such as configs/mini.toml")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    rehearsal = (
        "run every stage on random weights and a few items, in RUN-rehearsal/, measure it beside the plan,"
        " and remove it; needs no weights"
    )
    add("--rehearse", action="store_true", help=rehearsal)
    at_most = "at most N blocks of each kind (default: all)"
    add("--rehearse-depth", type=number(int, ge=1), metavar="N", help=at_most)
    side = "side of the images (default: the config's)"
    add("--rehearse-size", type=number(int, ge=1), metavar="PX", help=side)
    add("--rehearse-keep", action="store_true", help="do not remove RUN-rehearsal/")
    add("--gpu", default="H100", metavar="NAME", help="of the plan's hours: H100, H200, B200, A100, ...")
    share = "of that GPU's peak (default 0.4)"
    add("--utilisation", type=number(gt=0, le=1), default=0.4, metavar="SHARE", help=share)
    one = "override one setting; can be repeated"
    add("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help=one)
    accepted = (
        "accept a changed [evaluate], [report] or train.steps in a run, changed [prompts], [filter], [source]"
        " or [images] before an image is painted, and [surgery] or [train] before it has left anything, and"
        " redo what they touch"
    )
    add("--update", action="store_true", help=accepted)
    add("--json", action="store_true", help="print the result (or the plan) as JSON on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
