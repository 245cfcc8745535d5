"""The numbers of the paper's Tables 1 and 2, for context beside our own. They are the paper's, never measured
here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of Table 1; None where the paper prints a dash."""

    method: str
    geneval: float
    dpg: float | None
    note: str = ""


SOURCE = PaperRow(method="Z-Image-Turbo", geneval=0.82, dpg=84.86, note="the paper's source, latent")
L2P = PaperRow(method="L2P", geneval=0.76, dpg=86.00, note="the paper's transfer of it, pixel, 8 GPUs")

TABLE_1 = (
    PaperRow(method="FLUX.1 [Dev]", geneval=0.66, dpg=83.84, note="latent"),
    PaperRow(method="SD3 Medium", geneval=0.62, dpg=84.08, note="latent"),
    PaperRow(method="Qwen-Image", geneval=0.87, dpg=88.32, note="latent"),
    PaperRow(method="Seedream 3.0", geneval=0.84, dpg=88.27, note="latent"),
    SOURCE,
    PaperRow(method="PixelFlow", geneval=0.60, dpg=77.93, note="pixel"),
    PaperRow(method="PixelGen", geneval=0.79, dpg=80.01, note="pixel"),
    PaperRow(method="DeCo", geneval=0.86, dpg=81.25, note="pixel"),
    PaperRow(method="PixNerd", geneval=0.73, dpg=82.65, note="pixel"),
    PaperRow(method="PixelDiT", geneval=0.74, dpg=83.50, note="pixel"),
    L2P,
)

RETENTION = 0.936
"""Sec. 4.2: share of the source's GenEval score that L2P keeps. The printed 0.76 / 0.82 would be 0.927."""


@dataclass(frozen=True, kw_only=True)
class PaperRow4K:
    """One row of Table 2 (UltraHR-eval4K)."""

    method: str
    fid: float
    fid_patch: float
    inception_score: float
    clip: float  # Long-CLIP
    fg_clip: float


TABLE_2 = tuple(
    PaperRow4K(method=name, fid=a, fid_patch=b, inception_score=c, clip=d, fg_clip=e)
    for name, a, b, c, d, e in (
        ("I-Max", 37.12, 34.42, 11.78, 31.53, 27.90),
        ("HiFlow", 38.54, 22.74, 10.62, 31.49, 27.84),
        ("PixArt-Sigma", 35.60, 23.63, 12.23, 31.76, 28.74),
        ("SANA", 37.26, 28.94, 12.05, 31.79, 29.31),
        ("Diffusion4K", 41.69, 39.67, 12.06, 31.44, 27.03),
        ("L2P", 33.46, 21.77, 12.28, 31.88, 28.22),
    )
)


def rows_for(metric: str) -> tuple[tuple[str, float], ...]:
    """Return (method, the paper's value) of a metric of `l2p-evaluate`; () where the paper prints none."""
    if metric in ("geneval", "dpg"):
        values = ((row.method, getattr(row, metric)) for row in TABLE_1)
        return tuple((method, value) for method, value in values if value is not None)
    column = {
        "fid": "fid",
        "fid-patch": "fid_patch",
        "inception-score": "inception_score",
        "long-clip": "clip",
        "fg-clip": "fg_clip",
    }.get(metric)
    return tuple((row.method, getattr(row, column)) for row in TABLE_2) if column else ()
