"""What weight surgery did, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One line of the report."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """What became of every tensor. Inherited and new tensors carry their new names, dropped ones their old
    names."""

    source: str
    family: str
    patch_size: int
    initialisation: str
    inherited: tuple[TensorRecord, ...]
    new: tuple[TensorRecord, ...]
    dropped: tuple[TensorRecord, ...]
    recipe: str = "paper"
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the initialisation measured on the source, for example how much of the latents its fit
    explains."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {"inherited", "new", "dropped"}, each with its number of "tensors" and of "parameters"."""
        return {
            kind: {
                "tensors": len(getattr(self, kind)),
                "parameters": sum(prod(record.shape) for record in getattr(self, kind)),
            }
            for kind in ("inherited", "new", "dropped")
        }

    def summary(self) -> str:
        """Return one line for a terminal."""
        parts = [
            f"{kind} {count['tensors']} tensors ({count['parameters'] / 1e6:.2f} M parameters)"
            for kind, count in self.counts().items()
        ]
        return f"{self.family}, patch {self.patch_size}: " + ", ".join(parts)
