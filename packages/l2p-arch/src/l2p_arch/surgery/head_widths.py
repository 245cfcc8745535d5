"""Which Detailer Head goes with which patch."""

from collections.abc import Sequence

from l2p_arch.errors import ArchError

_WIDTHS = (8, 16, 32, 64, 128, 256, 512)
_TABLE_3 = (64, 128, 256, 512)


def default_head_channels(patch_size: int) -> tuple[int, ...]:
    """Encoder widths, finest first, of a head that halves the image down to the grid of tokens.

    Table 3's for patch 16 and its coarser ones' beginning below; for larger patches finer levels are added
    before it, as in the public 4K head. Empty, which is a plain linear head, for a patch of one pixel.
    """
    levels = max(patch_size, 1).bit_length() - 1
    if levels <= len(_TABLE_3):
        return _TABLE_3[:levels]
    return _WIDTHS[-levels:]


def check_head_channels(patch_size: int, head_channels: Sequence[int]) -> None:
    """Raise for a head that halves the image further than the patch does.

    It would drop tokens, and could not run on images of a single patch.
    """
    if head_channels and min(head_channels) < 1:
        raise ArchError(
            f"head_channels {tuple(head_channels)} must be positive widths, one per level, finest first"
        )
    if patch_size >= 1 and 2 ** len(head_channels) > patch_size:
        wanted = default_head_channels(patch_size)
        raise ArchError(
            f"a head of {len(head_channels)} levels halves the image to cells of "
            f"{2 ** len(head_channels)} px, beyond the patch of {patch_size}; "
            f"give fewer levels, such as head_channels {wanted}"
        )
