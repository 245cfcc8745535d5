"""`l2p-evaluate METRIC --images DIR | --model DIR`: paints where asked, scores, compares, reports.

Exit codes: 0 done, 1 a bug, 2 usage or input (what was scored before is kept and marked partial),
130/143 interrupted. Running the same command again goes on where it stopped.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

USAGE_ERROR = 2
_INTERVAL = 15.0  # s between lines of progress where there is no terminal
METRICS = {
    "geneval": (
        "benchmarks",
        "GenEval",
        "does the image show the objects, counts, colours, positions? (Table 1)",
    ),
    "dpg": ("benchmarks", "Dpg", "DPG-Bench: questions about dense prompts (Table 1)"),
    "fid": ("image_metrics", "Fid", "FID, FID-patch, or a Frechet distance on other features (Table 2)"),
    "inception-score": ("image_metrics", "InceptionScore", "Inception Score (Table 2)"),
    "clip": ("image_metrics", "Clip", "CLIP score of images and prompts"),
    "long-clip": ("image_metrics", "LongClip", "Long-CLIP score (Table 2, the column CLIP)"),
    "fg-clip": ("image_metrics", "FgClip", "FG-CLIP score (Table 2)"),
    "diversity": ("image_metrics", "Diversity", "LPIPS between the seeds of a prompt (Fig. 5)"),
    "patch-grid": (
        "image_metrics",
        "PatchGrid",
        "do patch borders show? jumps across them over jumps inside",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(given[0] if given else "").parse_args(given)
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from l2p_arch.errors import ArchError
    from l2p_eval.errors import EvalError

    from l2p_evaluate.errors import EvaluateError

    try:
        return _run(options, ["l2p-evaluate", *given])
    except (ArchError, EvalError, EvaluateError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    if options.metric == "efficiency":
        from l2p_evaluate.efficiency import run

        return run(options, command)
    from l2p_evaluate.runner import evaluate

    outcome = evaluate(options, command, progress=_Progress().tell)
    if options.json:
        print(json.dumps(outcome.results, indent=1))
    else:
        print((options.output / "report.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
        print(f"\nreport: {options.output / 'report.html'}   numbers: {options.output / 'results.json'}")
    if outcome.problem:
        print(f"error: {' '.join(outcome.problem.split())}", file=sys.stderr)
    return USAGE_ERROR if outcome.problem else 0


class _Progress:
    """One line that overwrites itself on a terminal, one per interval elsewhere; on stderr."""

    def __init__(self) -> None:
        self.live, self.last = sys.stderr.isatty(), time.monotonic()

    def tell(self, done: int, total: int, what: str) -> None:
        if self.live:
            end = "\n" if done == total else ""
            print(f"\r\033[K{what} {done}/{total}", end=end, file=sys.stderr, flush=True)
        elif time.monotonic() - self.last > _INTERVAL:
            self.last = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)


def _terminate(number: int, frame: object) -> None:
    print("terminated; run the same command again to go on", file=sys.stderr)
    raise SystemExit(128 + number)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser; only the chosen metric's module is loaded, because networks take seconds to import."""
    parser = argparse.ArgumentParser(
        prog="l2p-evaluate",
        description="Score models or folders of images, side by side.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 130/143 interrupted.",
    )
    metrics = parser.add_subparsers(dest="metric", required=True, metavar="METRIC")
    for name, (_, _, text) in METRICS.items():
        own = metrics.add_parser(name, help=text, description=text)
        if name == chosen:
            from l2p_evaluate.arguments import add_common
            from l2p_evaluate.runner import scorer_class

            add_common(own)
            scorer_class(name).add_arguments(own)
    own = metrics.add_parser("efficiency", help="latency and memory of source and L2P (Fig. 4)")
    if chosen == "efficiency":
        from l2p_evaluate.efficiency import add_arguments

        add_arguments(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
