"""Which tensors train (sec. 3.3, item 3; Fig. 9b): the new ends, the first and last n blocks, and what
surrounds them.

The paper trains "the initial input projection layer, the first and last n blocks, and the Detailer Head";
the released weights show that n counts at EACH end and that refiners, embedders and pad tokens train too
(all `shallow_names`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from l2p_run.errors import raised_as
from l2p_run.places import write_json

from l2p_train.errors import TrainError

PRESETS: dict[str, int | None] = {
    "shallow": 5,  # blocks at each end
    "mid": 10,
    "full": None,  # everything
    "head-only": -1,  # nothing but the new ends: pixel embedder and Detailer Head
    "lora": -1,  # the new ends, and low-rank adapters on the trunk (lora.py)
    "lora-only": -1,  # low-rank adapters and nothing else: a style or a subject for a finished model
}


@dataclass(frozen=True, kw_only=True)
class FreezeRow:
    """One line of the table: a block or another module."""

    module: str
    role: str  # "new end", "shallow" or "block"
    trainable: int  # parameters
    frozen: int


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """What trains in one run."""

    trainable: tuple[str, ...]  # parameter names, in the model's order
    new_ends: frozenset[str]  # those of them that the source did not have
    rows: tuple[FreezeRow, ...]

    @property
    def trainable_count(self) -> int:
        """Number of trainable parameters."""
        return sum(row.trainable for row in self.rows)

    @property
    def frozen_count(self) -> int:
        """Number of frozen parameters."""
        return sum(row.frozen for row in self.rows)

    def table(self) -> str:
        """Return the table as aligned text; runs of equal blocks are one line."""
        lines = [f"{'module':44} {'role':8} {'trainable':>14} {'frozen':>14}"]
        lines += [f"{r.module:44} {r.role:8} {r.trainable:14,} {r.frozen:14,}" for r in _merged(self.rows)]
        lines.append(f"{'total':53} {self.trainable_count:14,} {self.frozen_count:14,}")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write names and table as JSON."""
        content = {
            "trainable_parameters": self.trainable_count,
            "frozen_parameters": self.frozen_count,
            "rows": [asdict(row) for row in self.rows],
            "trainable": list(self.trainable),
        }
        with raised_as(TrainError):
            write_json(path, content)


def plan_freeze(
    sizes: Mapping[str, int],
    *,
    blocks: Sequence[str],
    shallow: Sequence[str],
    new_ends: Sequence[str],
    trainable: str | int = "shallow",
    train_patterns: Sequence[str] = (),
    freeze_patterns: Sequence[str] = (),
) -> FreezePlan:
    """Decide what trains.

    Args:
        sizes: parameter name -> number of elements, in the model's order.
        blocks: names of the main blocks in the order in which data meets them.
        shallow: names of the modules and parameters outside the blocks that train with them.
        new_ends: the modules among `shallow` that the source did not have.
        trainable: a preset (`PRESETS`) or n, the number of blocks at each end.
        train_patterns: if any, exactly the parameters that match one of them train (`trunk.layers.0.*`).
        freeze_patterns: parameters that match one of these are frozen after all.

    Raises:
        TrainError: a pattern matches nothing or takes a weight under an adapter; nothing trains.
    """
    for pattern in (*train_patterns, *freeze_patterns):
        if not any(fnmatchcase(name, pattern) for name in sizes):
            raise TrainError(
                f"pattern {pattern!r} matches no parameter; names look like {next(iter(sizes))!r}"
            )
    modules = (*shallow, *_ends(blocks, trainable))
    if trainable in ("head-only", "lora"):
        modules = tuple(new_ends)
    elif trainable == "lora-only":
        modules = ()
    if train_patterns:
        chosen = [name for name in sizes if any(fnmatchcase(name, pattern) for pattern in train_patterns)]
    elif trainable == "full":
        chosen = list(sizes)
    else:
        chosen = [
            name
            for name in sizes
            if any(_is_in(name, module) for module in modules)
            or (trainable in ("lora", "lora-only") and is_adapter(name))
        ]
    chosen = [name for name in chosen if not any(fnmatchcase(name, pattern) for pattern in freeze_patterns)]
    _check_not_under_adapters(chosen)
    if not chosen:
        raise TrainError("nothing trains: the freeze patterns take out every parameter")
    new = frozenset(name for name in chosen if any(_is_in(name, module) for module in new_ends))
    return FreezePlan(
        trainable=tuple(chosen), new_ends=new, rows=_rows(sizes, set(chosen), blocks, shallow, new_ends)
    )


def _check_not_under_adapters(chosen: Sequence[str]) -> None:
    if under := [name for name in chosen if ".base_layer." in name]:
        raise TrainError(
            f"train_patterns take {under[0].replace('.base_layer', '')}, which has a low-rank adapter and "
            "stays as it is; take the adapters (*.lora_*), leave the layer out of lora_targets, or freeze it "
            "with freeze_patterns"
        )


def plan_for_model(model: Any, **settings: Any) -> FreezePlan:
    """Return `plan_freeze` for an `L2PTransformer` (on any device, meta included, or sharded by ZeRO-3)."""
    return plan_freeze(
        {name: getattr(one, "ds_numel", one.numel()) for name, one in model.named_parameters()},
        blocks=model.block_names(),
        shallow=model.shallow_names(),
        new_ends=model.new_names(),
        **settings,
    )


def is_adapter(parameter: str) -> bool:
    """Return whether a parameter is a low-rank factor that PEFT added."""
    return ".lora_A." in parameter or ".lora_B." in parameter


def check_preset(trainable: str | int) -> None:
    """Raise `TrainError` for a name that is none of `PRESETS`."""
    if isinstance(trainable, str) and trainable not in PRESETS:
        raise TrainError(f"trainable is {trainable!r}; use a number of blocks or one of {', '.join(PRESETS)}")


def _ends(blocks: Sequence[str], trainable: str | int) -> list[str]:
    """Return the first and last n of `blocks`."""
    check_preset(trainable)
    n = PRESETS[trainable] if isinstance(trainable, str) else trainable
    if not isinstance(trainable, str) and trainable > len(blocks):
        raise TrainError(
            f'trainable is {trainable}, and the model has {len(blocks)} blocks; "full" trains all of them'
        )
    if n is None or 2 * n >= len(blocks):
        return list(blocks)
    if not isinstance(trainable, str) and n < 0:
        raise TrainError(f"trainable is {n}; the number of blocks at each end cannot be negative")
    return [*blocks[:n], *blocks[len(blocks) - n :]] if n > 0 else []


def _is_in(parameter: str, module: str) -> bool:
    return parameter == module or parameter.startswith(f"{module}.")


def _rows(
    sizes: Mapping[str, int],
    chosen: set[str],
    blocks: Sequence[str],
    shallow: Sequence[str],
    new: Sequence[str],
) -> tuple[FreezeRow, ...]:
    groups = [(name, "new end") for name in new]
    groups += [(name, "shallow") for name in shallow if name not in new]
    groups += [(name, "block") for name in blocks]
    counts: dict[tuple[str, str], list[int]] = {group: [0, 0] for group in groups}
    for name, size in sizes.items():
        owner = next((group for group in groups if _is_in(name, group[0])), (name, "other"))
        counts.setdefault(owner, [0, 0])[name not in chosen] += size
    return tuple(
        FreezeRow(module=module, role=role, trainable=trains, frozen=frozen)
        for (module, role), (trains, frozen) in counts.items()
        if trains or frozen
    )


def _kind(row: FreezeRow) -> tuple[str, str, bool]:
    """Return what blocks of one line share: FLUX has two lists of blocks, of different kinds."""
    return row.role, row.module.rpartition(".")[0], row.trainable > 0


def _merged(rows: Sequence[FreezeRow]) -> list[FreezeRow]:
    """Join neighbouring blocks of one list that all train, or do not: `trunk.layers.5 ... 24`."""
    merged: list[FreezeRow] = []
    runs: list[list[FreezeRow]] = []
    for row in rows:
        last = runs[-1][-1] if runs else None
        if last is not None and _kind(row) == _kind(last) and row.role == "block":
            runs[-1].append(row)
        else:
            runs.append([row])
    for run in runs:
        name = run[0].module if len(run) == 1 else f"{run[0].module} ... {run[-1].module.rsplit('.', 1)[-1]}"
        totals = {key: sum(getattr(row, key) for row in run) for key in ("trainable", "frozen")}
        merged.append(FreezeRow(module=name, role=run[0].role, **totals))
    return merged
