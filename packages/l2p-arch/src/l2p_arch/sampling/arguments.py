"""What a caller of `L2PPipeline` hands over to draw with, checked: seeds, generators, a callback's answer."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p_arch.errors import ArchError


def whole_seeds(seeds: Any) -> list[int]:
    """Return the seeds as numbers, or raise `ArchError`: 1.5 and "1" are none."""
    try:
        if isinstance(seeds, str | bytes | Mapping):
            raise TypeError
        return [operator.index(seed) for seed in seeds]
    except TypeError:
        raise ArchError(f"seeds is {seeds!r}; wanted one whole number per image, such as [0, 1]") from None


def given_generators(generator: Any) -> list[torch.Generator]:
    """Return a caller's generators, or raise `ArchError`."""
    generators = list(generator) if isinstance(generator, Iterable) else [generator]
    if not all(isinstance(each, torch.Generator) for each in generators):
        raise ArchError(f"generator is {generator!r}; wanted a torch.Generator, or one per image")
    return generators


def answered_state(answer: Any, x_t: Tensor) -> Tensor:
    """Return the state that a callback gave back in place of x_t, or x_t.

    Raises:
        ArchError: it answered no mapping, or something else than a tensor like x_t.
    """
    if answer is None:
        return x_t
    if not isinstance(answer, Mapping):
        raise ArchError(
            f"callback_on_step_end returned {type(answer).__name__}; wanted a mapping, such as it was given, "
            "or None"
        )
    state: Any = next((state for state in answer.values() if state is not x_t), x_t)
    if not isinstance(state, Tensor) or state.shape != x_t.shape:
        what = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise ArchError(
            f"callback_on_step_end returned the state {what}; wanted {tuple(x_t.shape)}, as given"
        )
    return state


def watched_states(names: Any, known: Sequence[str]) -> list[str]:
    """Return the names under which a callback is handed the state, or raise `ArchError`."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ArchError(f"callback_on_step_end_tensor_inputs is {names!r}; wanted a list of names")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArchError(f"callback_on_step_end_tensor_inputs {unknown[0]!r} is not one of {', '.join(known)}")
    return list(names)
