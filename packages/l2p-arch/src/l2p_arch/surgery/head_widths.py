"""Which Detailer Head goes with which patch."""

from collections.abc import Sequence

from l2p_arch.arguments import check_counts, check_widths
from l2p_arch.errors import ArchError

_WIDTHS = (8, 16, 32, 64, 128, 256, 512)
_TABLE_3 = (64, 128, 256, 512)
_PUBLIC: dict[int, tuple[tuple[int, ...], int | None, int]] = {
    128: ((3, 16, 32, 64, 128, 256, 512), None, 16),
    160: ((3, 16, 32, 64, 128, 256), 512, 16),
}
"""The published 8K and 10K heads by their patch: encoder widths, bottleneck, decoder floor."""


def default_head_channels(patch_size: int) -> tuple[int, ...]:
    """Return encoder widths, finest first, of a head that halves the image down to the grid of tokens.

    Table 3's for patch 16 and its coarser ones' beginning below; for larger patches finer levels are added
    before it, as in the public 4K head; for patch 128 and 160 they are the public 8K and 10K heads'.
    Empty, which is a plain linear head, for a patch of one pixel.
    """
    if patch_size in _PUBLIC:
        return _PUBLIC[patch_size][0]
    levels = max(patch_size, 1).bit_length() - 1
    if levels <= len(_TABLE_3):
        return _TABLE_3[:levels]
    return _WIDTHS[-levels:]


def complete_head(
    patch_size: int, channels: Sequence[int] | None, bottleneck: int | None, decoder_floor: int
) -> tuple[Sequence[int], int | None, int]:
    """Return (encoder widths, bottleneck, decoder floor) of what a user gave, completed where channels are
    None.
    """
    check_counts(least=0, head_decoder_floor=decoder_floor)
    if bottleneck is not None:
        check_counts(head_bottleneck=bottleneck)
    if channels is not None:
        check_widths("head_channels", channels)
        return channels, bottleneck, decoder_floor
    _, public_bottleneck, public_floor = _PUBLIC.get(patch_size, ((), None, 0))
    return default_head_channels(patch_size), bottleneck or public_bottleneck, decoder_floor or public_floor


def check_head_channels(patch_size: int, head_channels: Sequence[int]) -> None:
    """Raise for a head that halves the image further than the patch does.

    It would drop tokens, and could not run on images of a single patch.
    """
    check_widths("head_channels", head_channels)
    if patch_size >= 1 and 2 ** len(head_channels) > patch_size:
        wanted = default_head_channels(patch_size)
        raise ArchError(
            f"a head of {len(head_channels)} levels halves the image to cells of "
            f"{2 ** len(head_channels)} px, beyond the patch of {patch_size}; "
            f"give fewer levels, such as head_channels {wanted}"
        )
