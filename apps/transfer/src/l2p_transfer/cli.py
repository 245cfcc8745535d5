"""`l2p-transfer CONFIG`: prompts -> filter -> images -> surgery -> training -> evaluation -> report.

Exit codes: 0 done, 1 a bug, 2 usage, config or input, 3 training failed (the loss is not a number), 130/143
interrupted. Running the same command again goes on where it stopped.
"""

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from l2p_transfer.config import Config

USAGE_ERROR = 2
NOT_REACHED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    command = ["l2p-transfer", *(sys.argv[1:] if arguments is None else arguments)]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(options, command)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        remedy = "; free some and run the same command again" if isinstance(error, OSError) else ""
        print(f"error: {' '.join(str(error).split())}{remedy}" if code <= 3 else str(error), file=sys.stderr)
        return code


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    from l2p_transfer.config import load_config
    from l2p_transfer.costs import Machine
    from l2p_transfer.plan import check_inputs, make_plan

    config = load_config(options.config, options.set)
    _quiet_libraries()
    if options.dry_run:
        plan = make_plan(config, Machine(gpu=options.gpu, utilisation=options.utilisation))
        print(json.dumps(plan.to_row(), indent=1) if options.json else plan.text())
        for problem in plan.problems:
            print(f"error: {problem}", file=sys.stderr)
        from l2p_transfer.runner import check_unchanged

        check_unchanged(config, options.update)
        return USAGE_ERROR if plan.problems else 0
    from l2p_transfer.display import choose_display

    if options.rehearse:
        return _rehearse(config, options, command)
    check_inputs(config)
    from l2p_transfer.runner import execute

    display = choose_display()
    try:
        summary = execute(config, display, command=command, update=options.update)
    finally:
        display.close()
    if options.json:
        print(json.dumps(summary.to_row(), indent=1))
    else:
        _say_where(summary.root, bool(summary.executed))
    return 0


def _rehearse(config: "Config", options: argparse.Namespace, command: Sequence[str]) -> int:
    """--rehearse; exit code 3 if the whole run would not fit here, or resuming was not exact."""
    from l2p_transfer.display import choose_display
    from l2p_transfer.rehearsal import Options, rehearse

    display = choose_display()
    chosen = Options(depth=options.rehearse_depth, size=options.rehearse_size, keep=options.rehearse_keep)
    try:
        table = rehearse(config, chosen, display, command)
    finally:
        display.close()
    print(json.dumps(table.to_row(), indent=1) if options.json else table.text())
    return NOT_REACHED if table.problems or not table.resumed_alike else 0


def _quiet_libraries() -> None:
    """Tells libraries what they would otherwise guess and warn about, here and in worker processes."""
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _say_where(root: Path, executed: bool) -> None:
    """Ends the run with where to look."""
    from l2p_transfer.paths import RunPaths, shorten

    paths = RunPaths(root)
    shown = shorten(root)
    print("\nDone." if executed else "\nAll stages are done; nothing was left to do.")
    print(f"  report    {shown / paths.report.name}  (and report.md)")
    print(f"  pictures  {shown / 'samples'}{os.sep}")
    print(f"  model     {shown / 'model'}{os.sep}")
    print(f'\nPaint with it:  l2p-generate --model {shown} "your prompt" -o out.png')


def _exit_code(error: Exception) -> int | None:
    """2 for what the user can put right, the trainer's own codes, None for a bug."""
    from l2p_arch.errors import ArchError
    from l2p_data.errors import DataError
    from l2p_eval.errors import EvalError
    from l2p_train.errors import Interrupted, TrainError

    from l2p_transfer.errors import TransferError

    if isinstance(error, TrainError | Interrupted):
        return int(error.exit_code)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return USAGE_ERROR
    return USAGE_ERROR if isinstance(error, ArchError | DataError | EvalError | TransferError) else None


def _terminate(number: int, frame: object) -> None:
    print("terminated; run the same command again to go on", file=sys.stderr)
    raise SystemExit(128 + number)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and up to 1, such as 0.4")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake."""
        self.exit(USAGE_ERROR, f"error: {message}; {self.prog} --help says more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="l2p-transfer",
        description="Turn a latent diffusion model into a pixel-space one: prompts, filter, images, surgery,"
        " training, evaluation, report. Run the same command again to resume.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 3 training failed, 130/143 interrupted.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file such as configs/mini.toml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run every stage on random weights and a few items, in RUN-rehearsal/, measure it beside the"
        " plan, and remove it; needs no weights",
    )
    add = parser.add_argument
    add("--rehearse-depth", type=_count, metavar="N", help="at most N blocks of each kind (default: all)")
    add("--rehearse-size", type=_count, metavar="PX", help="side of the images (default: the config's)")
    add("--rehearse-keep", action="store_true", help="do not remove RUN-rehearsal/")
    parser.add_argument(
        "--gpu", default="H100", metavar="NAME", help="of the plan's hours: H100, H200, B200, A100, ..."
    )
    parser.add_argument(
        "--utilisation", type=_share, default=0.4, metavar="SHARE", help="of that GPU's peak (default 0.4)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="override one setting; can be repeated",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="accept a changed [evaluate], [report] or train.steps in a run, changed [prompts], [filter],"
        " [source] or [images] before an image is painted, and [surgery] or [train] before it has left"
        " anything, and redo what they touch",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result (or the plan) as JSON on stdout"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
