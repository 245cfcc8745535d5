"""Print the table of docs/costs.md, one column a config:

uv run python scripts/costs_page.py configs/z-image-1k.toml configs/flux-1k.toml ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from l2p_plan.columns import column, table
from l2p_plan.model import plan_model
from l2p_transfer.config import load_config
from l2p_transfer.planning.described import describe

NAMES = {
    "Z-Image-Turbo": "Z-Image-Turbo",
    "FLUX.1-dev": "FLUX.1 [dev]",
    "Qwen-Image": "Qwen-Image",
    "stable-diffusion-3.5-large": "SD3.5 Large",
}
"""Names of source directories, for people."""


def page(paths: Sequence[Path]) -> str:
    """The table; raises `UserError` for a config that is not there or bad."""
    columns = []
    for path in paths:
        transfer = describe(load_config(path))
        name = transfer.source.directory.name
        columns.append((NAMES.get(name, name), column(transfer, plan_model(transfer))))
    return table(columns)


if __name__ == "__main__":
    print(page([Path(argument) for argument in sys.argv[1:]]))
