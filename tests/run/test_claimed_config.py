"""A folder belongs to the config that filled it, and what stages leave is kept at an address."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from l2p_run.config_file import read_extended, read_toml
from l2p_run.errors import UserError
from l2p_run.folder.claimed_config import ClaimedConfig
from l2p_run.stages import Outcome, Stage, identities

TABLES = {"run": {"seed": 0}, "report": {"title": "one"}}


def claim(folder: Path, tables: Mapping[str, Any]) -> ClaimedConfig:
    return ClaimedConfig(
        path=folder / "config.toml",
        tables=tables,
        defaults={"run": {"seed": 0, "threads": 1}, "report": {"title": ""}},
        may_change=lambda table, key: table == "report",
        irrelevant=[("run", "threads")],
        place="--output",
    )


def test_the_first_config_takes_an_empty_folder_and_the_same_one_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    first = claim(tmp_path, TABLES)
    first.check(update=False)
    assert not first.path.exists()
    first.write()
    assert read_toml(first.path) == TABLES
    first.check(update=False)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        UserError, match=r"not empty \(thesis.tex\) and holds no run; choose another --output"
    ):
        claim(tmp_path, TABLES).check(update=True)


@pytest.mark.parametrize(
    ("tables", "said", "said_with_update"),
    [
        ({"run": {"seed": 0, "threads": 8}, "report": {"title": "one"}}, "", ""),
        ({"run": {}, "report": {"title": "one"}}, "", ""),  # its default is what was written
        (TABLES | {"report": {"title": "two"}}, "add --update to redo", ""),
        (TABLES | {"run": {"seed": 1}}, "run.seed: 0 -> 1. Restore it, or choose", "run.seed: 0 -> 1"),
    ],
)
def test_what_may_change_needs_the_users_word_and_the_rest_another_folder(
    tmp_path: Path, tables: Mapping[str, Any], said: str, said_with_update: str
) -> None:
    claim(tmp_path, TABLES).write()
    for update, wanted in ((False, said), (True, said_with_update)):
        if wanted:
            with pytest.raises(UserError, match=wanted.replace(".", r"\.")):
                claim(tmp_path, tables).check(update=update)
        else:
            claim(tmp_path, tables).check(update=update)


def test_a_damaged_config_says_nothing_about_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(tmp_path, TABLES).write()
    (tmp_path / "config.toml").write_text("[run")
    claim(tmp_path, TABLES | {"run": {"seed": 1}}).check(update=False)
    assert "is damaged and is written again" in capsys.readouterr().err


def test_a_file_completes_what_it_extends_and_no_circle_is_walked(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[a]\nx = 1\ny = [1, 2]\n[b]\nz = 3\n")
    (tmp_path / "own.toml").write_text('extends = "base.toml"\n[a]\ny = [3]\n[c]\nw = 4\n')
    assert read_extended(tmp_path / "own.toml") == {"a": {"x": 1, "y": [3]}, "b": {"z": 3}, "c": {"w": 4}}
    (tmp_path / "base.toml").write_text('extends = "own.toml"\n')
    with pytest.raises(UserError, match="extends itself"):
        read_extended(tmp_path / "own.toml")
    (tmp_path / "own.toml").write_text("extends = 3\n")
    with pytest.raises(UserError, match="extends is 3; it must be the name of a file"):
        read_extended(tmp_path / "own.toml")


def test_an_identity_depends_on_its_own_and_earlier_tables_and_on_what_is_read() -> None:
    stages = [
        Stage(
            name=name, title=name, tables=(name,), execute=lambda use, progress: Outcome(note="", values={})
        )
        for name in ("first", "second")
    ]
    tables = {"first": {"x": 1}, "second": {"y": 1}, "unused": {"z": 1}}

    def known(tables: Mapping[str, Any], read: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [hashes for _, hashes in identities(stages, tables, lambda stage: read.get(stage, {}))]

    before = known(tables, {})
    assert known(tables | {"unused": {"z": 2}}, {}) == before
    second = known(tables | {"second": {"y": 2}}, {})
    assert second[0] == before[0] and second[1] != before[1]
    first = known(tables | {"first": {"x": 2}}, {})
    assert first[0] != before[0] and first[1] != before[1]
    read = known(tables, {"second": {"file": "sha"}})
    assert read[0] == before[0]
    assert read[1][0] != before[1][0] and read[1][1] == before[1][1], "the second one is of settings alone"
