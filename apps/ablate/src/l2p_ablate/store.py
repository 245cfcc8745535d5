"""What ablations share: corpora, reference pictures and runs, each in a folder named by all it depends on.

Two ablations that ask for the same run (the paper's own setting is an arm of most of them) train it once.
Several commands may work in one store at a time, on one machine or over a shared file system with locks:
each takes what no other is busy with.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from l2p_data.corpus.identity import sha256_file

from l2p_ablate.config import ArmTable, Config
from l2p_ablate.errors import AblateError


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where everything lies.

    Attributes:
        root: the store.
        config: the ablation that asks.
    """

    root: Path
    config: Config

    def corpus(self, name: str) -> Path:
        """The folder of the corpus `[data.NAME]`."""
        return self.root / "data" / _key(self._corpus(name))

    @property
    def reference(self) -> Path:
        """The GenEval folder of the held-out pictures."""
        return self.root / "reference" / _key(self._reference())

    def run(self, arm: ArmTable, seed: int) -> Path:
        """The folder of one arm's run: its training, images and `result.json`."""
        config = self.config
        train = {**config.train, **arm.train}
        train.pop("processes", None)  # how a batch is shared out changes nothing but rounding
        settings = {
            "corpus": self._corpus(config.data_of(arm)),
            "reference": self._reference(),
            "source": self._source(),
            "surgery": config.surgery_of(arm).model_dump(mode="json"),
            "train": train,
            "sampling": config.sampling_of(arm).model_dump(mode="json"),
            "seed": seed,
        }
        return self.root / "runs" / _key(settings)

    def _source(self) -> dict[str, Any]:
        table = self.config.source.model_dump(mode="json", exclude={"model"})
        return table | {"model": _weights(self.config.source.model)}

    def _corpus(self, name: str) -> dict[str, Any]:
        data = self.config.data[name]
        table = data.model_dump(mode="json", exclude={"grammar", "model"})
        painter = {"source": self._source(), "model": _weights(data.model)} if data.kind == "model" else {}
        return table | painter | {"grammar": sha256_file(data.grammar), "size": self.config.size}

    def _reference(self) -> dict[str, Any]:
        evaluate = self.config.evaluate
        table = evaluate.model_dump(mode="json", exclude={"metadata", "batch_size"})
        painter = {"source": self._source()} if evaluate.reference == "source" else {}
        return table | painter | {"metadata": sha256_file(evaluate.metadata), "size": self.config.size}


@contextmanager
def held(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Keeps other commands out of `folder`; yields whether it could be had (always, with `wait`).

    Raises:
        AblateError: nothing can be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f".{folder.name}.lock").open("a")
    except OSError as error:
        raise AblateError(
            f"cannot write to {folder.parent}: {error.strerror}; choose another --output"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@cache
def _weights(model: Path | None) -> str | None:
    """Which weights a diffusers directory holds: a hash of its tensor files, by content."""
    if model is None:
        return None
    files = sorted(model.rglob("*.safetensors"))
    if not files:
        raise AblateError(
            f"{model} has no safetensors file; [source] model is a directory in diffusers' layout"
        )
    digests = [(path.relative_to(model).as_posix(), sha256_file(path)) for path in files]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _key(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
