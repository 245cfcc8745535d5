"""The surgery that a training begins with (sec. 3.3): one table of settings, as configs write it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from l2p_run.settings import setting

from l2p_train.config import TrainConfig

if TYPE_CHECKING:
    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery.report import SurgeryReport
    from l2p_arch.surgery.source import Source
    from torch import Tensor

CALIBRATION_PIXELS = 2**20  # of corpus images that a start may measure the source with
CALIBRATION_IMAGES = 64
ALIGNED_TOKENS = 2**14  # that the maps of the aligned recipe are fitted on: they read nine tokens each
ALIGNED_IMAGES = 16  # at least


@dataclass(frozen=True, kw_only=True)
class SurgerySettings:
    """From the source's transformer to the pixel-space initialisation (sec. 3.3, Table 3)."""

    recipe: Literal["paper", "aligned"] = setting("paper", later=True)  # aligned: keeps the source's last
    # layer, predicts x_0
    decoder: str = setting("auto", later=True)  # aligned only: low-rank, least-squares, neighbours, filters
    # or closed-form
    reading: str = setting("auto", later=True)  # aligned only: what the trunk reads, subspace or wiener
    polish: Literal["auto"] | tuple[float, ...] = setting("auto", later=True)  # aligned only: the sigmas at
    # which a finished image is denoised once more
    prediction: Literal["auto", "velocity", "x_0"] = setting(
        "auto", later=True
    )  # what the head answers; auto:
    # the recipe's own
    patch_size: int = setting(16, ge=1)
    head_channels: tuple[int, ...] = setting((64, 128, 256, 512), ge=1)
    initialisation: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: as in the source

    def check(self, train: TrainConfig, *, where: str = "") -> None:
        """Refuse what cannot be made, or not be trained, before a corpus is painted for it.

        Args:
            train: the training that follows.
            where: what stands before the names of the tables in errors, such as "arm full: ".

        Raises:
            ArchError: a setting of the surgery, and what is wrong with it.
            TrainError: a setting of the training that such a model cannot have.
        """
        from l2p_arch.surgery.recipes import resolve_polish
        from l2p_arch.surgery.settings_check import check_surgery_settings

        from l2p_train.errors import TrainError

        check_surgery_settings(
            recipe=self.recipe,
            patch_size=self.patch_size,
            head_channels=self.head_channels,
            initialisation=self.initialisation,
            decoder=self.decoder,
            prediction=self.prediction,
            reading=self.reading,
            polish=self.polish,
            table=f"{where}surgery.",
        )
        aligned = self.recipe == "aligned"
        try:
            train.check_recipe(aligned=aligned, polishes=aligned and bool(resolve_polish(self.polish)))
        except TrainError as error:
            raise TrainError(f"{where}train.{error}") from None

    def build(self, source: "Source") -> "L2PTransformer":
        """Return the model on the meta device, without values; `ArchError` where the source has none such."""
        import torch
        from l2p_arch.model import L2PTransformer
        from l2p_arch.surgery.recipes import recipe_config

        trunk = {key: value for key, value in source.transformer_config.items() if not key.startswith("_")}
        more = recipe_config(self.recipe, self.decoder, self.prediction, self.reading, self.polish)
        with torch.device("meta"):
            return L2PTransformer(source.family.name, trunk, self.patch_size, self.head_channels, **more)

    def operate(self, source: Path, out: Path, train: TrainConfig) -> "SurgeryReport":
        """Write the pixel-space initialisation of `source`, a diffusers directory, to `out`.

        Args:
            train: the training that follows; its corpus is measured where the recipe or the start wants it,
                and its seed is that of new weights.

        Raises:
            ArchError: what `l2p_arch.convert` refuses.
            TrainError: the corpus cannot be read.
        """
        from l2p_arch.surgery.convert import convert
        from l2p_arch.surgery.starts import measures_source

        measuring = self.recipe == "aligned" or measures_source(self.initialisation)
        images, prompts = self._examples(train) if measuring else (None, None)
        return convert(
            source,
            out,
            patch_size=self.patch_size,
            head_channels=self.head_channels,
            seed=train.seed,
            dtype=self.dtype,
            recipe=self.recipe,
            initialisation=self.initialisation,
            prediction=self.prediction,
            decoder=self.decoder,
            reading=self.reading,
            polish=self.polish,
            calibration_images=images,
            calibration_prompts=prompts,
            overwrite=True,
        )

    def in_words(self) -> str:
        """Return what is done, for a plan: "patch 16, kaiming+detail"."""
        from l2p_arch.surgery.recipes import DECODERS, resolve_decoder, resolve_start

        if self.recipe == "paper":
            return f"patch {self.patch_size}, {self.initialisation}"
        decoder, start = resolve_decoder(self.decoder), resolve_start(self.initialisation)
        runs = "VAE and transformer" if DECODERS[decoder].runs_source else "VAE"
        return f"patch {self.patch_size}, aligned, decoder {decoder}, {start}; runs the source's {runs}"

    def _examples(self, train: TrainConfig) -> tuple["Tensor", list[str]]:
        """Return some images of the corpus as (N, 3, H, W) in [-1, 1], and their prompts."""
        from l2p_train.data.corpus import first_images

        def wanted(pixels: int) -> int:
            if self.recipe == "aligned":
                return max(ALIGNED_IMAGES, ALIGNED_TOKENS * self.patch_size**2 // pixels)
            return max(1, min(CALIBRATION_IMAGES, CALIBRATION_PIXELS // pixels))

        return first_images(train, multiple=self.patch_size, wanted=wanted)
