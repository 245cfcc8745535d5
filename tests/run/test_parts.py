"""Progress, provenance, usage, devices and cluster arithmetic."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from l2p_run.cluster import workers_that_fit
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.errors import UserError
from l2p_run.progress import Counter, LineDisplay, clock, say
from l2p_run.provenance import collect
from l2p_run.usage import usable_cores


class Terminal(io.StringIO):
    """A stream that people watch."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_counter_overwrites_its_line_on_a_terminal_and_is_rare_in_a_log() -> None:
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        with Counter("images", stream=stream) as counter:
            for done in range(1, 101):
                counter(done, 100)
    assert terminal.getvalue().count("\r") == 100 and terminal.getvalue().endswith("images 100/100\n")
    assert log.getvalue() == "images 100/100\n"


def test_an_unfinished_line_is_ended_and_a_permanent_one_stands_alone() -> None:
    stream = Terminal()
    counter = Counter("steps", stream=stream)
    counter(1, 3)
    counter.say("found something")
    counter(2, 3)
    counter.close()
    assert stream.getvalue().split("\r\033[K") == ["", "steps 1/3", "found something\n", "steps 2/3\n"]


def test_whoever_stops_watching_does_not_end_the_work() -> None:
    say("x", Gone())
    counter, display = Counter("x", stream=Gone(), interval=0), LineDisplay(Gone(), interval=0)
    counter(1, 2)
    display.start(1, 2, "Images")
    display.progress(1, 2, "half")
    display.finish("done", 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (185, "3:05 min"), (7800, "2:10 h")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_provenance_names_what_runs() -> None:
    found = collect(["l2p-x", "y"], ["l2p-run", "no-such-package"], Path(__file__).parent)
    assert found["command"] == "l2p-x y" and list(found["packages"]) == ["l2p-run"]
    assert found["machine"]["cores"] == usable_cores() and found["machine"]["memory_bytes"] > 0
    assert found["commit"] and len(found["commit"].rstrip("+")) == 12
    assert collect([], [], Path("/"))["commit"] is None


METERED = """
from l2p_run.usage import MemoryMeter, memory_of_process_tree
with MemoryMeter() as empty:
    pass
with MemoryMeter() as full:
    held = bytearray(200 << 20)
    held[::4096] = b"x" * len(held[::4096])
    now = memory_of_process_tree()
    while full.peak_bytes < now - (10 << 20):  # until a sample is younger than the memory
        full._stop.wait(0.1)
print(full.peak_bytes - empty.peak_bytes)
"""


def test_the_meter_sees_what_its_block_holds() -> None:
    """In a process of its own: one that has run other tests has freed memory to use again."""
    run = subprocess.run([sys.executable, "-c", METERED], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert 190 << 20 < int(run.stdout) < 300 << 20


@pytest.mark.parametrize(
    ("cpu", "wanted"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        ({"bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_one_precision_per_machine(
    monkeypatch: pytest.MonkeyPatch, cpu: dict[str, bool], wanted: str
) -> None:
    """Every command asks this function: corpus, evaluation and picture are painted in one precision."""
    import torch
    from l2p_data.synthesis.worker import resolve_dtype as of_synthesis
    from l2p_evaluate.options import resolve_dtype as of_evaluate
    from l2p_serve.painting import resolve_dtype as of_generate
    from l2p_transfer.evaluation import resolve_dtype as of_transfer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert of_evaluate is of_generate is of_transfer is of_synthesis is resolve_dtype
    assert resolve_dtype("auto") == resolve_dtype("auto", "cpu") == wanted
    assert resolve_dtype("auto", "cuda:1") == "bfloat16" and resolve_dtype("float16") == "float16"
    assert choose_device() == "cpu" and choose_device("cuda:1") == "cuda:1"


def test_workers_are_counted_by_what_each_takes() -> None:
    cluster = {"CPU": 64.0, "GPU": 8.0, "training": 4.0, "node:10.0.0.1": 1.0}
    assert workers_that_fit(cluster, {}) == 8
    assert workers_that_fit({"CPU": 6.0}, {}) == 6
    assert workers_that_fit(cluster, {"CPU": 16}) == 4
    assert workers_that_fit(cluster, {"training": 0.5}) == 8
    with pytest.raises(
        UserError, match=r"cluster\.x takes 1 'trianing', the cluster has CPU 64, GPU 8, training 4;"
    ):
        workers_that_fit(cluster, {"trianing": 1}, setting="cluster.x")
    code = (
        "import sys\n"
        "from l2p_run.cluster import workers_that_fit\n"
        "assert workers_that_fit({'CPU': 2.0}, {}) == 2\n"
        "assert 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
