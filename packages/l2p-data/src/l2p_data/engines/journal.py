"""Answers of a language model, kept on disk as they come in: what was paid for once is never asked again."""

import json
from collections.abc import Sequence
from pathlib import Path

from l2p_data.corpus.files import folder_exists, location, one_line, read_bytes, write_bytes
from l2p_data.corpus.identity import stable_id
from l2p_data.errors import DataError

_ANSWERS_PER_PART = 64  # written as one file; what a crash can cost at most
Key = tuple[str, str, int, float]
"""Model, message, seed, temperature: all that an answer depends on."""


class Journal:
    """A folder of immutable JSON-lines files with one answer a line, under a hash of what was asked.

    The folder may be an address ("s3://..."), where another machine finds what this one was answered. Several
    runs may share a folder one after the other, not at once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = location(folder)
        self._answers: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._parts = 0
        parts = self.folder.glob("answers-*.jsonl") if folder_exists(self.folder) else ()
        for path in sorted(parts, key=str):
            content = read_bytes(path)  # what cannot be read may be whole
            try:
                for line in content.decode("utf-8").splitlines():
                    row = json.loads(line)
                    self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"journal {path} is damaged ({one_line(error, 80)}); move that file out of the folder, "
                    "and only its answers are asked for again"
                ) from error
            self._parts = int(path.stem.rpartition("-")[2]) + 1

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, keys: Sequence[Key]) -> dict[int, str]:
        """Return the answers that are there, by position in `keys`."""
        names = [_name(key) for key in keys]
        return {index: self._answers[name] for index, name in enumerate(names) if name in self._answers}

    def add(self, key: Key, answer: str) -> None:
        """Note an answer; it is on disk after the next `flush` or some further answers."""
        name = _name(key)
        self._answers[name] = self._pending[name] = answer
        if len(self._pending) >= _ANSWERS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if not self._pending:
            return
        lines = [
            json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n"
            for key, answer in self._pending.items()
        ]
        write_bytes(self.folder / f"answers-{self._parts:05d}.jsonl", "".join(lines).encode())
        self._pending.clear()
        self._parts += 1


def _name(key: Key) -> str:
    model, message, seed, temperature = key
    return stable_id("answer", model, message, seed, str(temperature))
