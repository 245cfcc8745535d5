"""A folder that belongs to the config that filled it: the config is written there, and another is refused.

claim = ClaimedConfig(path=run / "config.toml", tables=tables, defaults={}, may_change=may_change)
claim.check(update=False)
claim.write()
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run.config_file import differences, read_toml, write_toml
from l2p_run.errors import UserError
from l2p_run.places import is_file
from l2p_run.progress import say


@dataclass(frozen=True, kw_only=True)
class ClaimedConfig:
    """The config of a folder, and what may change in it.

    Attributes:
        path: of the file in the folder.
        tables: resolved, as TOML values.
        defaults: what tables mean that leave out all that they may.
        may_change: takes a table and a key; whether `update` takes a change there.
        irrelevant: (table, key) that may differ freely.
        place: the setting that names the folder, for errors.
    """

    path: Path
    tables: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Mapping[str, Any]]
    may_change: Callable[[str, str], bool]
    irrelevant: Iterable[tuple[str, str]] = ()
    place: str = "run.output"

    def check(self, *, update: bool, ignored: Iterable[str] = (".lock",)) -> None:
        """Raise unless the folder is empty or this config's; writes nothing.

        Args:
            update: accept changes where they may be.
            ignored: names that do not make a folder another's.

        Raises:
            UserError: the folder is another config's, or holds something else.
        """
        folder = self.path.parent
        if not is_file(self.path):
            if foreign := sorted(path.name for path in folder.iterdir() if path.name not in {*ignored}):
                raise UserError(
                    f"{folder} is not empty ({foreign[0]}) and holds no run; choose another {self.place}"
                )
            return
        changes = list(self.changes())
        fixed = [text for table, key, text in changes if not self.may_change(table, key)]
        if fixed:
            raise UserError(
                f"{folder} was made with another config: {'; '.join(fixed)}."
                f" Restore it, or choose another {self.place}"
            )
        if changes and not update:
            shown = "; ".join(text for _, _, text in changes)
            raise UserError(
                f"{folder} was made with another config: {shown}. Restore it, choose another {self.place},"
                " or add --update to redo what depends on it"
            )

    def write(self) -> None:
        """Write the config, after `check`."""
        write_toml(self.path, self.tables)

    def changes(self) -> Iterator[tuple[str, str, str]]:
        """Yield (table, key, "table.key: old -> new") for every setting that differs and matters.

        None for a file that is damaged. It is written again then, from the config that is given: what took
        long should know by itself what it was made with.
        """
        try:
            old = read_toml(self.path)
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            say(f"{self.path} is damaged and is written again: {error}")
            return
        yield from differences(old, self.tables, self.defaults, self.irrelevant)
