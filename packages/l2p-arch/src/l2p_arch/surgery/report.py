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

    def summary(self) -> str:
        """One line for a terminal."""
        parts = []
        for label in ("inherited", "new", "dropped"):
            records: tuple[TensorRecord, ...] = getattr(self, label)
            count = sum(prod(record.shape) for record in records)
            parts.append(f"{label} {len(records)} tensors ({count / 1e6:.2f} M parameters)")
        return f"{self.family}, patch {self.patch_size}: " + ", ".join(parts)
