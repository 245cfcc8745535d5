"""docs/config.md is what scripts/config_page.py writes, and has every key."""

import dataclasses
import runpy
from pathlib import Path

from l2p_transfer.config import TABLES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


def test_the_page_of_config_keys_is_what_the_script_writes() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "config_page.py"))["page"]
    assert page() == PAGE, "run: uv run python scripts/config_page.py"


def test_every_key_has_a_row_in_its_table_with_its_meaning() -> None:
    own = PAGE.partition("## The trainer alone")[2]
    tables = {part.partition("]")[0]: part for part in PAGE.split("\n## [")[1:]}
    assert tables.keys() == TABLES.keys()
    for name, kind in TABLES.items():
        lines = (tables[name] + (own if name == "train" else "")).splitlines()
        rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
        for one in dataclasses.fields(kind):
            cells = rows[one.name].replace("\\|", "").strip("| ").split(" | ")
            assert len(cells[3]) > 1, f"{name}.{one.name} has no meaning"
