"""The pixel-space model of a transfer, on meta tensors: no memory, no weights, nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l2p_arch.families.facts import full_transformer_config

from l2p_plan.costs import Costs, Machine, estimate_costs
from l2p_plan.errors import PlanError
from l2p_plan.transfer import Source, Transfer


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Sizes of the pixel-space model, and what its transfer costs."""

    family: str
    counted_from: str  # the source's config, or the family's full size where there are no weights
    patch_size: int
    grid: tuple[int, int]  # tokens (height, width) of the largest image that is trained
    tokens: int  # its image tokens
    trainable: int  # parameters
    frozen: int
    memory_gb: float  # per training process, estimated
    details: str  # the trainer's own table
    processes: int  # of the training
    costs: Costs

    def text(self) -> list[str]:
        """Return lines for people."""
        total = self.trainable + self.frozen
        return [
            f"family          {self.family}, counted from {self.counted_from}",
            f"image tokens    {self.tokens:,} ({self.grid[0]} x {self.grid[1]}, patch"
            f" {self.patch_size}: {self.grid[1] * self.patch_size}x"
            f"{self.grid[0] * self.patch_size} px)",
            f"parameters      {total:,}: {self.trainable:,} train ({self.trainable / total:.1%}),"
            f" {self.frozen:,} frozen",
            f"memory          {self.memory_gb:.2f} GB per training process (estimate)",
            "",
            *(f"  {line}" if line else "" for line in self.details.splitlines()),
            "",
            *self.costs.text(self.processes),
        ]


def plan_model(transfer: Transfer, machine: Machine | None = None) -> ModelPlan:
    """Count the model of a transfer, and what the transfer costs.

    Args:
        machine: the GPU that hours are computed for; by default an H100 at 40 % of its peak.

    Raises:
        UserError, ArchError: no source and no family, settings that make no model, an unknown GPU.
    """
    import torch
    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery.recipes import recipe_config
    from l2p_train.memory import estimate

    surgery, (width, height) = transfer.surgery, transfer.trained_size
    family, trunk, counted_from = trunk_of(transfer.source)
    with torch.device("meta"):
        model = L2PTransformer(
            family=family,
            trunk_config=dict(trunk),
            patch_size=surgery.patch_size,
            head_channels=surgery.head_channels,
            **recipe_config(surgery.recipe, surgery.decoder, reading=surgery.reading, polish=surgery.polish),
        )
    with TemporaryDirectory() as folder:  # the trainer counts from a model directory, and there is none yet
        model.save_config(Path(folder) / "transformer")
        settings = replace(transfer.train, model=Path(folder))
        needs = estimate(settings, transfer.processes, height=height, width=width)
        costs = estimate_costs(
            transfer, machine or Machine(), family=family, trunk=trunk, model=Path(folder), needs=needs
        )
    return ModelPlan(
        family=family,
        counted_from=counted_from,
        patch_size=surgery.patch_size,
        grid=(height // surgery.patch_size, width // surgery.patch_size),
        tokens=needs.image_tokens,
        trainable=needs.plan.trainable_count,
        frozen=needs.plan.frozen_count,
        memory_gb=round(needs.total_gb, 3),
        details=needs.text(),
        processes=transfer.processes,
        costs=costs,
    )


def trunk_of(source: Source) -> tuple[str, Mapping[str, Any], str]:
    """Return (family, transformer config, where that came from) of a source, there or not."""
    from l2p_arch.families import find_family
    from l2p_arch.surgery.source import open_source

    if source.directory.is_dir():
        found = open_source(source.directory)
        trunk = {key: value for key, value in found.transformer_config.items() if not key.startswith("_")}
        return found.family.name, trunk, "the source's config"
    if not source.family:
        raise PlanError(f"{source.directory} is not there, and no family says what it would be; name one")
    family = find_family(source.family)
    full = full_transformer_config(family.name, family.transformer_class)
    return family.name, full, f"the full size of {family.name} (source.model is not there)"
