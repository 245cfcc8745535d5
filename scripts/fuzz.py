"""Try what nobody wrote a test for: configs, options, files, models, pictures, requests; as long as you like.

    uv run python scripts/fuzz.py --minutes 60
    uv run python scripts/fuzz.py --minutes 5 --area models --area recipes --seed 7
    uv run python scripts/fuzz.py --replay runs/fuzz/models-0123456789.json

Each case runs the real command in a child of its own. It fails if the command ends with anything but 0, 2 or
130, if an error is not one line, if there is a traceback, if it takes more than a minute of a core or 3 GiB,
if a result has a number that is not finite, or if `--dry-run` accepts what a run refuses, or refuses what it
accepts. A failure is made small and saved as a file that does the same again.

Exit codes: 0 nothing failed, 1 something did, 130 interrupted. See docs/contributing/fuzzing.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {  # whatever is set outside: children are forked, and threads are not
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.case import ACCEPTED, Case, Result, run

AREAS = {
    **{"transfer": "configs", "training": "configs", "ablation": "configs", "options": "command_lines"},
    **{"prompts": "files", "metadata": "files", "corpora": "files", "models": "models", "recipes": "models"},
    **{"pictures": "pictures", "requests": "requests"},
}
"""Area -> the module of `fuzzing` that has its strategy, a function of the area's name."""
_ROUND = 20  # cases of an area before it is the next one's turn
_SHRINKING = 60.0  # s to make a failure small


@dataclass
class Tally:
    """What an area's cases did."""

    cases: int = 0
    accepted: int = 0
    slowest: float = 0.0  # s
    largest: int = 0  # bytes
    failures: dict[str, Path] = field(default_factory=dict)  # kind -> file

    def add(self, result: Result) -> None:
        self.cases += 1
        self.accepted += result.ends[0].code == ACCEPTED
        self.slowest = max(self.slowest, *(end.seconds for end in result.ends))
        self.largest = max(self.largest, *(end.peak_bytes for end in result.ends))


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, or replay; returns the exit code."""
    options = _parser().parse_args(arguments)
    from fuzzing.work import import_all, warm

    import_all()
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        seeds = Path(folder)
        _make_seeds(seeds)
        warm(seeds)
        try:
            return _replay(options.replay, seeds) if options.replay else _fuzz(options, seeds)
        except KeyboardInterrupt:
            return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="how long (default 10)")
    add("--seed", type=int, default=0, help="other cases")
    add("--area", action="append", choices=sorted(AREAS), help="only this; may be repeated")
    add("--failures", type=Path, default=Path("runs/fuzz"), metavar="DIR", help="where they are saved")
    add("--replay", type=Path, nargs="+", metavar="FILE", help="run saved failures again")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _make_seeds(folder: Path) -> None:
    """In a child: what has computed cannot be forked."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            from fuzzing.seeds import make_seeds

            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1), os.dup2(log, 2)
            make_seeds(folder)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(number, 0)
    if status:
        raise RuntimeError(f"the seeds could not be made:\n{(folder / 'log').read_text()[-2000:]}")


def _replay(files: list[Path], seeds: Path) -> int:
    from fuzzing.work import work

    failed = 0
    for file in files:
        result = run(Case.from_json(file.read_text()), seeds, work)
        failed += bool(result.problem)
        print(f"{file}: {result.problem or 'does not fail any more'}")
        if result.problem:
            print("\n".join(end.err for end in result.ends))
    return 1 if failed else 0


def _fuzz(options: argparse.Namespace, seeds: Path) -> int:
    end = time.monotonic() + 60 * options.minutes
    tallies = {name: Tally() for name in options.area or AREAS}
    began = time.monotonic()
    number = options.seed
    while time.monotonic() < end:
        for name, tally in tallies.items():
            _round(name, tally, seeds, number, end, options.failures)
            minutes = (time.monotonic() - began) / 60
            print(
                f"{minutes:5.1f} min  {name}: {tally.cases} cases, {tally.accepted} accepted,"
                f" {len(tally.failures)} failures, slowest {tally.slowest:.1f} s, {tally.largest >> 20} MiB",
                file=sys.stderr,
                flush=True,
            )
        number += 1
    failures = sum(len(tally.failures) for tally in tallies.values())
    print(json.dumps(_rows(tallies), indent=1) if options.json else _table(tallies))
    return 1 if failures else 0


def _round(name: str, tally: Tally, seeds: Path, number: int, end: float, folder: Path) -> None:
    """Some cases of an area; the first failure of a kind that is new is made small, and saved."""
    import hypothesis
    from fuzzing.work import work
    from hypothesis import HealthCheck, Phase

    strategy = getattr(import_module(f"fuzzing.{AREAS[name]}"), name)(seeds)
    known: dict[str, Result] = {}  # case -> its result: hypothesis asks for the smallest one again
    first: dict[str, Any] = {}

    def attempt(case: Case) -> None:
        key = case.to_json()
        if key not in known:
            if time.monotonic() > first.get("until", end):
                return
            known[key] = run(case, seeds, work)
            tally.add(known[key])
        problem = known[key].problem
        if (
            not problem
            or (kind := _kind(problem)) in tally.failures
            or kind != first.setdefault("kind", kind)
        ):
            return
        first.setdefault("until", time.monotonic() + _SHRINKING)
        first["case"], first["problem"] = case, problem
        raise AssertionError(problem)

    settings = hypothesis.settings(
        max_examples=_ROUND,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    test = hypothesis.seed(number)(settings(hypothesis.given(strategy)(attempt)))
    try:
        test()
    except AssertionError:
        tally.failures[first["kind"]] = _save(first["case"], first["problem"], folder)
    except hypothesis.errors.Flaky as error:  # the time was up while a failure was made small
        if "case" in first:
            tally.failures[first["kind"]] = _save(first["case"], first["problem"], folder)
        elif time.monotonic() < end:
            raise RuntimeError(f"the cases of {name} depend on more than their seed") from error


def _kind(problem: str) -> str:
    """What two failures of one cause have in common: the text without numbers and what stands in quotes."""
    import re

    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", problem)[:160]


def _save(case: Case, problem: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.name}.json"
    path.write_text(case.to_json(problem=problem))
    print(f"{path}: {problem}", file=sys.stderr, flush=True)
    return path


def _rows(tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    return [
        {
            "area": name,
            "cases": tally.cases,
            "accepted": tally.accepted,
            "slowest_seconds": round(tally.slowest, 1),
            "largest_mib": tally.largest >> 20,
            "failures": {kind: str(path) for kind, path in tally.failures.items()},
        }
        for name, tally in tallies.items()
    ]


def _table(tallies: dict[str, Tally]) -> str:
    lines = ["area        cases  accepted  slowest s  largest MiB  failures"]
    for row in _rows(tallies):
        lines.append(
            f"{row['area']:10} {row['cases']:6} {row['accepted']:9} {row['slowest_seconds']:10}"
            f" {row['largest_mib']:12} {len(row['failures']):9}"
        )
        lines += [f"    {path}: {kind}" for kind, path in row["failures"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
