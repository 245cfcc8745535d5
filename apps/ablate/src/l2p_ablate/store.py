"""What ablations share: corpora, reference pictures and runs, each in a folder named by all it depends on.

Two ablations that ask for the same run (the paper's own setting is an arm of most of them) train it once.
Several commands may work in one store at a time, on one machine or over a shared file system with locks:
each takes what no other is busy with.
"""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from l2p_eval.painting import model_sha256
from l2p_run import hashes
from l2p_run.devices import resolve_dtype
from l2p_run.folder import shared_work
from l2p_run.settings import identity_table, to_table

from l2p_ablate.config import ArmTable, Config, SurgeryTable


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
        """Return the folder of the corpus `[data.NAME]`."""
        return self.root / "data" / _key(self._corpus(name))

    @property
    def reference(self) -> Path:
        """The GenEval folder of the held-out pictures."""
        return self.root / "reference" / _key(self._reference())

    def run(self, arm: ArmTable, seed: int) -> Path:
        """Return the folder of one arm's run: its training, images and `result.json`."""
        config = self.config
        train = {**config.train, **arm.train}
        train.pop("processes", None)  # how a batch is shared out changes nothing but rounding
        surgery = config.surgery_of(arm)
        base = {"base": _content(surgery.base)} if surgery.base else {}
        settings = {
            "corpus": self._corpus(config.data_of(arm)),
            "reference": self._reference(),
            "source": self._source(),
            "surgery": identity_table(surgery) | base | _meaning(surgery),
            "train": to_table(train),
            "sampling": to_table(config.sampling_of(arm)),
            "seed": seed,
            "judges": _judges(),
        }
        return self.root / "runs" / _key(settings)

    def _source(self) -> dict[str, Any]:
        source = self.config.source
        return to_table(source) | {"model": _content(source.model), "dtype": resolve_dtype("auto")}

    def _corpus(self, name: str) -> dict[str, Any]:
        data = self.config.data[name]
        painter: dict[str, Any] = {"world": world()}
        if data.kind == "model":
            painter = {"source": self._source(), "model": data.model and _content(data.model)}
        table = {key: value for key, value in to_table(data).items() if key not in ("grammar", "model")}
        return table | painter | {"grammar": hashes.of_file(data.grammar), "size": self.config.size}

    def _reference(self) -> dict[str, Any]:
        evaluate = self.config.evaluate
        table = {"prompts_per_tag": evaluate.prompts_per_tag, "reference": evaluate.reference}
        painted = evaluate.reference == "source"
        painter: dict[str, Any] = {"source": self._source()} if painted else {"world": world()}
        content = {"metadata": hashes.of_file(evaluate.metadata), "seed": evaluate.seed}
        return table | painter | content | {"size": self.config.size}


held = partial(shared_work.held, remedy="choose another --output")
"""Keeps other commands out of a folder; yields whether it could be had (always, with `wait`)."""


def _meaning(surgery: SurgeryTable) -> dict[str, Any]:
    """Return what "auto" stands for today: a version to which it says something else trains another model."""
    from l2p_arch.surgery.recipes import recipe_config, resolve_start
    from l2p_arch.surgery.starts import STARTS_WITH_IMAGES

    aligned = surgery.recipe == "aligned"
    made = recipe_config(surgery.recipe, surgery.decoder, surgery.prediction, surgery.reading, surgery.polish)
    start = resolve_start(surgery.initialisation) if aligned else surgery.initialisation
    return {"makes": made, "start": STARTS_WITH_IMAGES if start == "auto" else start}


@cache
def _content(model: Path) -> str:
    """Return a diffusers directory by the content of its configs and weights."""
    return model_sha256(model)


@cache
def world() -> str:
    """Return the renderer of the miniature's scenes by what it draws: another version draws other pixels."""
    from l2p_ablate.data import render_prompt

    probes = ("a red circle", "two green rings on a black background", "a blue cross above a white triangle")
    return hashes.of_bytes(b"".join(render_prompt(probe, 0, 64).tobytes() for probe in probes))[:16]


@cache
def _judges() -> list[str]:
    """Return what scores an arm: the detector by its version, the features by their weights."""
    from l2p_eval.metrics.features import load_extractor
    from l2p_mini.detector import ExactDetector

    return [ExactDetector.name, load_extractor("efficientnet-lite0").weights_sha256]


def _key(settings: Any) -> str:
    return hashes.of_settings(settings, 16)
