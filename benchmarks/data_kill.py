"""kill -9 at random moments of a synthesis, then the same command again: are the bytes those of a quiet run?

    uv run python benchmarks/data_kill.py --points 20

Half of the kills come at a random line of l2p_data (between two writes, say), half after a random time
(within the pipeline or a system call). Each point: kill, with one chance in three kill the resumed run too,
run to the end, compare every file. Prints one line a point; exits with 1 if any byte differs.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

PROMPTS = [f"a red circle number {index}" for index in range(6)]
OUT_OF_REACH = 1 << 60
ENDED = " (had ended)"


def synthesis(model: Path, corpus: Path) -> None:
    """The command under test: 12 images in 4 shards, in this process."""
    from l2p_data import SynthesisConfig, prompt_records, synthesize

    config = SynthesisConfig(
        model=model,
        output=corpus,
        width=64,
        height=64,
        batch_size=2,
        rows_per_shard=3,
        workers=0,
        pipeline_kwargs={"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32},
    )
    synthesize(prompt_records(PROMPTS), config)


class LineKiller:
    """Counts lines that run in l2p_data, in all threads, and ends the process at the `fatal`-th."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.lines = fatal, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "l2p_data" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def child(model: Path, corpus: Path, *, fatal: int | None, count: Path | None = None) -> int:
    """Start the command in a forked process (imports are paid once); returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if fatal is not None:
            killer = LineKiller(fatal)
            threading.settrace(killer)
            sys.settrace(killer)
        synthesis(model, corpus)
        sys.settrace(None)
        if count is not None:
            count.write_text(str(killer.lines))
        code = 0
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code, or the negative signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(corpus: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(corpus)): path.read_bytes()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def killed(model: Path, corpus: Path, rng: random.Random, lines: int, seconds: float, by_line: bool) -> str:
    """One attempt that is killed if it does not end first; says at what point."""
    if by_line:
        fatal = rng.randrange(1, lines + 1)
        code = wait(child(model, corpus, fatal=fatal))
        where = f"line {fatal} of {lines}"
    else:
        delay = rng.uniform(0, seconds)
        pid = child(model, corpus, fatal=None)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        code, where = wait(pid), f"{delay:.2f} s of {seconds:.2f}"
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the command failed on its own with {code} at {where}")
    return where + (ENDED if code == 0 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch
    from diffusers import DiffusionPipeline  # noqa: F401 - imported once, for all forks
    from l2p_data.synthesis import synthesize as _  # noqa: F401
    from l2p_mini.architecture import write_untrained_source

    torch.set_num_threads(1)
    rng, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = write_untrained_source(root / "model", seed=0)
        assert wait(child(model, root / "counted", fatal=OUT_OF_REACH, count=root / "lines")) == 0
        lines, start = int((root / "lines").read_text()), time.monotonic()
        assert wait(child(model, root / "whole", fatal=None)) == 0
        seconds, whole = time.monotonic() - start, content(root / "whole")
        assert content(root / "counted") == whole
        for point in range(options.points):
            corpus = root / f"point-{point}"
            deaths = [killed(model, corpus, rng, lines, seconds, by_line=point % 2 == 0)]
            while ENDED in deaths[0]:  # the machine is quicker now than at the start: that was no kill
                shutil.rmtree(corpus)
                seconds *= 0.7
                deaths = [killed(model, corpus, rng, lines, seconds, by_line=point % 2 == 0)]
            if rng.random() < 1 / 3:
                deaths.append(killed(model, corpus, rng, lines, seconds, by_line=rng.random() < 0.5))
            shards = len(list(corpus.glob("part-*"))) if corpus.exists() else 0
            assert wait(child(model, corpus, fatal=None)) == 0
            same = content(corpus) == whole
            wrong += not same
            verdict = "same bytes" if same else "DIFFERENT"
            print(
                f"{point + 1:3d}  killed at {' and '.join(deaths)}; {shards} of 4 shards: {verdict}",
                flush=True,
            )
    print(f"{options.points} points, {wrong} with other bytes than the undisturbed run")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
