"""Whether the settings of a surgery go together, before a source is read or a corpus painted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from l2p_arch.errors import ArchError
from l2p_arch.surgery.head_widths import check_head_channels
from l2p_arch.surgery.recipes import (
    check_prediction,
    resolve_decoder,
    resolve_polish,
    resolve_reading,
    resolve_start,
)
from l2p_arch.surgery.starts import AUTO, check_initialisation


def check_surgery_settings(
    *,
    recipe: str,
    patch_size: int,
    head_channels: Sequence[int],
    initialisation: str,
    decoder: str = AUTO,
    prediction: str = AUTO,
    reading: str = AUTO,
    polish: float | Sequence[float] | str = AUTO,
    table: str = "",
) -> None:
    """Raise for the first setting that `convert` would refuse; calibration images count as being there.

    Args:
        table: what the table of the settings is called, for errors, such as "surgery.".

    Raises:
        ArchError: the setting, and what is wrong with it.
    """
    with _named(f"{table}head_channels"):
        check_head_channels(patch_size, head_channels)
    with _named(f"{table}initialisation"):
        if recipe == "aligned":
            resolve_start(initialisation)
        else:
            check_initialisation(initialisation, cast(Any, "the corpus"), head_channels, prediction)
    with _named(f"{table}prediction"):
        check_prediction(recipe, prediction)
    if recipe == "paper":
        for name, value in (("decoder", decoder), ("reading", reading), ("polish", polish)):
            if not isinstance(value, str) or value != AUTO:
                raise ArchError(
                    f'{table}{name} is {value!r}, which belongs to {table}recipe = "aligned"; leave it out'
                )
        return
    if not head_channels:
        raise ArchError(
            f'{table}recipe = "aligned" needs a Detailer Head, and {table}head_channels is empty; give '
            'some, or use recipe = "paper"'
        )
    with _named(f"{table}decoder"):
        resolve_decoder(decoder)
    with _named(f"{table}reading"):
        resolve_reading(reading)
    with _named(f"{table}polish"):
        resolve_polish(polish)


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """Say which setting an ArchError of the block is about."""
    try:
        yield
    except ArchError as error:
        raise ArchError(f"{setting}: {error}") from None
