"""What a finished corpus consists of: `_manifest.json`, written last.

Its name begins with "_", as every reader of Parquet folders (Arrow, pandas, Spark) leaves such files out;
`manifest.json`, its name in earlier versions, is read as well.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from l2p_data.corpus.files import folder_exists, is_file, location, read_json, shown, write_json
from l2p_data.errors import DataError, checks

FORMAT = "l2p-corpus/1"
_WORDS: Mapping[Any, str] = {int: "a whole number", str: "a text"}
MANIFEST, EARLIER_MANIFEST = "_manifest.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished Parquet file."""

    file: str  # relative to the corpus directory
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A row that should have become an image and did not."""

    id: str
    seed: int
    error: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished corpus consists of. Holds no clock times: the same work gives the same manifest."""

    shards: tuple[Shard, ...]
    failures: tuple[Failure, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # how the rows were made
    cut_prompts: tuple[str, ...] = ()  # for each prompt that the text encoder cut, the first words it lost

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def reasons(self) -> dict[str, int]:
        """Return how many rows failed for each reason (what stands before the colon), commonest first."""
        return dict(Counter(failure.error.partition(":")[0] for failure in self.failures).most_common())

    def save(self, corpus: Path) -> None:
        """Write the manifest into the corpus directory; one under the earlier name goes."""
        content = {
            "format": FORMAT,
            "rows": self.rows,
            "failed": len(self.failures),
            "settings": dict(self.settings),
            "shards": [asdict(shard) for shard in self.shards],
            "failures": [asdict(failure) for failure in self.failures],
        }
        if self.cut_prompts:
            content["cut_prompts"] = list(self.cut_prompts)
        write_json(corpus / MANIFEST, content)
        (corpus / EARLIER_MANIFEST).unlink(missing_ok=True)


def manifest_path(corpus: Path) -> Path | None:
    """Return where a corpus's manifest is; None for an unfinished corpus."""
    return next((corpus / name for name in (MANIFEST, EARLIER_MANIFEST) if is_file(corpus / name)), None)


@checks
def load_manifest(corpus: str | Path) -> Manifest:
    """Read a corpus's manifest.

    Raises:
        DataError: the directory or the manifest is missing, cannot be read, or is damaged.
    """
    corpus = location(corpus)
    if not folder_exists(corpus):
        raise DataError(f"corpus directory {corpus} does not exist")
    path = manifest_path(corpus)
    if path is None:
        raise DataError(
            f"{corpus} has no {MANIFEST}: the corpus is unfinished; run the synthesis again to finish it"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no corpus manifest of format {FORMAT!r}")
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise DataError(f"{path} is damaged: settings is {shown(settings)}; it must be a table")
    manifest = Manifest(
        shards=_entries(Shard, content.get("shards"), f"{path} is damaged: shards"),
        failures=_entries(Failure, content.get("failures"), f"{path} is damaged: failures"),
        settings=settings,
        cut_prompts=tuple(map(str, content.get("cut_prompts") or ())),
    )
    _check(manifest, content, path)
    return manifest


def _entries(kind: Any, entries: Any, where: str) -> Any:
    if not isinstance(entries, list):
        raise DataError(f"{where} is {shown(entries)}; it must be a list")
    return tuple(read_entry(kind, entry, f"{where}[{index}]") for index, entry in enumerate(entries))


def read_entry(kind: Any, entry: Any, where: str) -> Any:
    """Return a `Shard` or `Failure` from JSON values.

    Raises:
        DataError: something is missing or of another type.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {shown(entry)}; it must be a table")
    for one in fields(kind):
        value = entry.get(one.name)
        if type(value) is not one.type:
            raise DataError(f"{where}.{one.name} is {shown(value)}; it must be {_WORDS[one.type]}")
    return kind(**{one.name: entry[one.name] for one in fields(kind)})


def _check(manifest: Manifest, content: Mapping[str, Any], path: Path) -> None:
    files = [shard.file for shard in manifest.shards]
    if twice := [name for name, count in Counter(files).items() if count > 1]:
        raise DataError(f"{path} lists the shard {twice[0]} twice; it was edited: restore it from a copy")
    if outside := [name for name in files if len(PurePosixPath(name).parts) != 1 or name.startswith(".")]:
        raise DataError(f"{path} lists the shard {outside[0]!r}, which is no file of this folder")
    if any(shard.rows < 0 or shard.bytes < 0 for shard in manifest.shards):
        raise DataError(f"{path} lists a shard of fewer than no rows; it was edited: restore it from a copy")
    if content.get("rows", manifest.rows) != manifest.rows:
        raise DataError(
            f"{path} says {content['rows']!r} rows, its shards have {manifest.rows}; it was edited or cut: "
            "restore it from a copy"
        )
