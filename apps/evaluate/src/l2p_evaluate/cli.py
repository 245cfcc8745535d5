"""`l2p-evaluate METRIC --images DIR | --model DIR`: paints where asked, scores, compares, reports.

Exit codes: 0 done, 1 a bug, 2 usage or input (what was scored before is kept and marked partial),
130/143 interrupted. Running the same command again goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence

from l2p_run.command import USAGE_ERROR, Parser, out, quiet_libraries, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(given))


def _run(given: Sequence[str]) -> int:
    quiet_libraries()
    options = _parser(given[0] if given else "").parse_args(given)
    command = ["l2p-evaluate", *given]
    if options.metric == "efficiency":
        from l2p_evaluate.efficiency import run

        return run(options, command)
    return _evaluate(options, command)


def _evaluate(options: argparse.Namespace, command: Sequence[str]) -> int:
    import json

    from l2p_arch.errors import ArchError
    from l2p_eval.evaluation import evaluate
    from l2p_run.errors import UserError
    from l2p_run.places import read_text
    from l2p_run.progress import Counter, say
    from l2p_run.provenance import collect

    from l2p_evaluate.options import PACKAGES, evaluation_of

    evaluation = evaluation_of(options)
    with Counter() as counter:
        outcome = evaluate(
            evaluation,
            options.output,
            collect(command, PACKAGES),
            progress=lambda done, total, what: counter(done, total, what=what),
            warn=lambda text: counter.say(f"note: {text}"),
            expected=(UserError, ArchError),
        )
    if options.json:
        out(json.dumps(outcome.results, indent=1, default=str))
    else:
        out(read_text(options.output / "report.md").split("\n## ")[0].strip())
        out(f"\nreport: {options.output / 'report.html'}   numbers: {options.output / 'results.json'}")
    if outcome.problem:
        say(f"error: {' '.join(outcome.problem.split())}")
    return USAGE_ERROR if outcome.problem else 0


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser; only the chosen metric gets its options, because others' help would be long."""
    from l2p_eval.metric_options import COMMANDS
    from l2p_eval.scores import METRICS

    from l2p_evaluate.options import add_common

    parser = Parser(
        prog="l2p-evaluate",
        package="l2p-evaluate",
        description="Score models or folders of images, side by side.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 130/143 interrupted.",
    )
    metrics = parser.add_subparsers(dest="metric", required=True, metavar="METRIC")
    for name, metric in METRICS.items():
        own = metrics.add_parser(name, help=metric.about, description=metric.about)
        if name == chosen:
            add_common(own)
            COMMANDS[name].add_options(own)
    own = metrics.add_parser("efficiency", help="latency and memory of source and L2P (Fig. 4)")
    if chosen == "efficiency":
        from l2p_evaluate.efficiency import add_options

        add_options(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
