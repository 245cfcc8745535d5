"""The source families that L2P can start from; one short file each (and an entry in `source_formats`)."""

from l2p_arch.families.base import Conditioning, Family
from l2p_arch.families.flux import FLUX
from l2p_arch.families.flux2 import FLUX2
from l2p_arch.families.lumina2 import LUMINA2
from l2p_arch.families.pixart_sigma import PIXART_SIGMA
from l2p_arch.families.prx import PRX
from l2p_arch.families.qwen_image import QWEN_IMAGE
from l2p_arch.families.sana import SANA
from l2p_arch.families.sd3 import SD3
from l2p_arch.families.z_image import Z_IMAGE
from l2p_arch.source_formats import source_format

FAMILIES: dict[str, Family] = {
    "z-image": Z_IMAGE,
    "flux": FLUX,
    "qwen-image": QWEN_IMAGE,
    "sd3": SD3,
    "lumina2": LUMINA2,
    "flux2": FLUX2,
    "sana": SANA,
    "prx": PRX,
    "pixart-sigma": PIXART_SIGMA,
}

__all__ = ["FAMILIES", "Conditioning", "Family", "find_family"]


def find_family(name: str) -> Family:
    """Return the family of that name, or an ArchError that lists the known ones."""
    return FAMILIES[source_format(name).family]
