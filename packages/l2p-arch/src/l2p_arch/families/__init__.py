"""The source families that L2P can start from; one short file each."""

from l2p_arch.errors import ArchError
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

__all__ = ["FAMILIES", "Conditioning", "Family", "find_family", "find_family_of_class"]


def find_family(name: str) -> Family:
    """The family of that name, or an ArchError that lists the known ones."""
    if name not in FAMILIES:
        raise ArchError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def find_family_of_class(transformer_class: str) -> Family:
    """The family whose trunk is that diffusers class, or an ArchError that lists the known ones."""
    for family in FAMILIES.values():
        if transformer_class in (family.transformer_class, *family.older_classes):
            return family
    known = ", ".join(f"{family.transformer_class} ({family.name})" for family in FAMILIES.values())
    raise ArchError(f"no family for a source transformer of class {transformer_class!r}; known: {known}")
