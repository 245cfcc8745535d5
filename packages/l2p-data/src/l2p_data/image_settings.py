"""One table of settings that says how prompts become a corpus, as configs write it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_run.settings import setting
from l2p_run.sizes import Size

from l2p_data.errors import DataError
from l2p_data.synthesis.buckets import parse_size

if TYPE_CHECKING:
    from l2p_data.synthesis.config import SynthesisConfig

LONGEST_SIDE = 16_384  # px; the largest released model paints 10,240


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The corpus that the source paints (sec. 3.2; the paper: 2 seeds a prompt, 1024 px)."""

    seeds_per_prompt: int = setting(2, ge=1)
    width: int = setting(1024, ge=1, le=LONGEST_SIDE)  # px
    height: int = setting(1024, ge=1, le=LONGEST_SIDE)  # px
    buckets: tuple[str, ...] | None = None  # instead: "1152x896" and so on, each image gets one of them
    batch_size: int = setting(8, ge=1)
    cpu_offload: bool = False  # text encoder, transformer, VAE are on the GPU by turns: slower, less memory
    rows_per_shard: int = setting(64, ge=1)
    workers: int | None = setting(None, ge=0)  # None: one per GPU, or as many as the CPUs hold; 0:
    # without Ray, in this process

    def sizes(self) -> tuple[Size, ...]:
        """Return the sizes of the images: those of `buckets`, or else the one of width and height.

        Raises:
            DataError: there is none, or a bucket is no size.
        """
        if self.buckets is None:
            return (Size(width=self.width, height=self.height),)
        if not self.buckets:
            raise DataError(
                'images.buckets is []; name sizes such as ["1024x1024", "1152x896"], or leave it out'
            )
        try:
            return tuple(parse_size(text) for text in self.buckets)
        except DataError as error:
            raise DataError(f"images.buckets: {error}") from None

    def synthesis(
        self,
        *,
        model: Path,
        output: Path | str,
        dtype: str,
        pipeline_kwargs: Mapping[str, Any],
        ray_address: str | None = None,
        worker_resources: Mapping[str, float] | None = None,
    ) -> "SynthesisConfig":
        """Return what `synthesize` takes: these settings, a model and where it runs."""
        from l2p_data.synthesis.config import SynthesisConfig

        return SynthesisConfig(
            model=model,
            output=output,
            dtype=dtype,
            pipeline_kwargs=pipeline_kwargs,
            ray_address=ray_address,
            worker_resources=worker_resources or {},
            buckets=() if self.buckets is None else self.sizes(),
            **{key: value for key, value in asdict(self).items() if key != "buckets"},
        )
