"""CPU time that importing each package takes, beside an empty interpreter and beside torch; best of several.

uv run benchmarks/import_time.py
"""

import resource
import subprocess
import sys

REPEATS = 5
STATEMENTS = {
    "an empty interpreter": "pass",
    "import l2p_arch": "import l2p_arch",
    "import l2p_data": "import l2p_data",
    "import l2p_train": "import l2p_train",
    "import l2p_eval": "import l2p_eval",
    "import l2p_mini": "import l2p_mini",
    "l2p-data --help": "from l2p_data.cli import main; main(['--help'])",
    "l2p-transfer --help": "from l2p_transfer.cli import main; main(['--help'])",
    "l2p-generate --help": "from l2p_generate.cli import main; main(['--help'])",
    "from l2p_arch import FAMILIES": "from l2p_arch import FAMILIES",
    "import torch": "import torch",
}


def cpu_seconds(statement: str) -> float:
    """CPU time of a fresh interpreter; wall time would measure the machine's other work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    seconds = {
        name: min(cpu_seconds(statement) for _ in range(REPEATS)) for name, statement in STATEMENTS.items()
    }
    empty, torch = seconds["an empty interpreter"], seconds["import torch"]
    for name, value in seconds.items():
        share = (value - empty) / (torch - empty)
        print(f"{name:30} {1000 * value:7.0f} ms   {share:6.1%} of torch's own")
