"""`l2p-ablate configs/ablations/NAME.toml`: arms x seeds, with spread, chart and verdict.

Exit codes: 0 done, 1 a bug, 2 usage, config or input, 3 the budget ran out first (or a training failed),
130/143 interrupted. Running the same command again goes on where it stopped.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

USAGE_ERROR, INCOMPLETE = 2, 3
_INTERVAL = 30.0  # s between lines of progress where there is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    command = ["l2p-ablate", *(sys.argv[1:] if arguments is None else arguments)]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(options, command)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except ValueError as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return code
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(str(error), file=sys.stderr)
        return code


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    from l2p_ablate.config import load_config

    config = load_config(options.config, _overrides(options))
    root = options.output / options.config.stem
    if options.dry_run:
        print(_plan(config, root))
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from l2p_ablate.results import table
    from l2p_ablate.runner import execute

    progress = _Progress()
    summary = execute(
        config,
        root,
        options.output / "shared",
        command=command,
        workers=options.workers,
        say=progress.say,
        progress=progress.tell,
    )
    if options.publish:
        publish(root, options.publish, options.config.stem)
    print(json.dumps(summary, indent=1) if options.json else table(summary))
    return 0 if summary["complete"] else INCOMPLETE


def publish(root: Path, folder: Path, name: str) -> None:
    """Copies the evidence (JSON and PNG) to where it is committed."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, suffix in (
        ("results.json", ".json"),
        ("chart.png", ".png"),
        ("pictures.png", "-pictures.png"),
    ):
        if (root / source).is_file():
            shutil.copyfile(root / source, folder / f"{name}{suffix}")


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    ablation = {}
    if options.seeds is not None:
        ablation["seeds"] = list(range(options.seeds))
    if options.budget is not None:
        ablation["budget_minutes"] = options.budget
    return {"ablation": ablation} if ablation else {}


def _plan(config: Any, root: Path) -> str:
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
        images = data.prompts * data.images_per_prompt
        lines.append(
            f"  {arm.name:18} {settings.steps} steps of {settings.batch_size},"
            f" trainable {settings.trainable},"
            f" {images} images of {config.data_of(arm)}"
        )
    return "\n".join([*lines, "Nothing was written."])


class _Progress:
    """Lines on stderr; what changes often overwrites itself on a terminal, and is rare elsewhere."""

    def __init__(self) -> None:
        self.live, self.last = sys.stderr.isatty(), 0.0

    def say(self, text: str) -> None:
        print(("\r\033[K" if self.live else "") + text, file=sys.stderr, flush=True)

    def tell(self, text: str) -> None:
        if self.live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last > _INTERVAL:
            self.last = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def _exit_code(error: Exception) -> int | None:
    """2 for what the user can put right, the trainer's own codes, None for a bug."""
    from l2p_arch.errors import ArchError
    from l2p_data.errors import DataError
    from l2p_eval.errors import EvalError
    from l2p_evaluate.errors import EvaluateError
    from l2p_train.errors import Interrupted, TrainError

    from l2p_ablate.errors import AblateError

    if isinstance(error, TrainError | Interrupted):
        return int(error.exit_code)
    mine = (ArchError, DataError, EvalError, EvaluateError, AblateError)
    return USAGE_ERROR if isinstance(error, mine) else None


def _terminate(number: int, frame: object) -> None:
    print("terminated; run the same command again to go on", file=sys.stderr)
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="l2p-ablate",
        description="One of the paper's ablations on the miniature: arms x seeds, spread, chart, verdict."
        " Run the same command again to resume.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 3 out of budget or a loss that is not finite,"
        " 130/143 interrupted.",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a TOML file of configs/ablations/")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("runs/ablations"),
        help="gets NAME/, the results, and shared/, what ablations have in common (default: %(default)s)",
    )
    add("--seeds", type=_positive, metavar="N", help="seeds 0 to N-1 instead of the config's")
    add("--budget", type=float, metavar="MINUTES", help="instead of the config's")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes; default one per GPU or core; 0 paints in this one",
    )
    add(
        "--publish", type=Path, metavar="DIR", help="copy results and charts there, as NAME.json and NAME.png"
    )
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    add("--json", action="store_true", help="print results.json instead of the table")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
