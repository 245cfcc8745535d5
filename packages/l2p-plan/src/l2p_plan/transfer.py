"""What a plan must know of a transfer: plain values, so that any program can ask, with or without a config.

    transfer = Transfer(
        source=Source(directory=Path("models/Z-Image-Turbo"), family="z-image"),
        train=TrainConfig(model=Path("m"), corpus=Path("c"), output=Path("o"), batch_size=64, steps=10_000),
        processes=8,
    )
    print("\\n".join(plan_model(transfer).text()))

Nothing of it has to exist: a source that is not there is counted at its family's published size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from l2p_run.sizes import Size
from l2p_train.config import TrainConfig

USUAL_SIZE = Size(width=1024, height=1024)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The latent model, and how it samples."""

    directory: Path  # a diffusers directory, there or not
    family: str = ""  # where the directory is not there
    repository: str | None = None  # what to download; None: the family's best known
    num_inference_steps: int = 9
    guidance_scale: float = 0.0  # the strongest of the guidances that its pipeline takes
    max_sequence_length: int | None = None  # tokens of a prompt; None: its family's
    dtype: str = "auto"  # "float32" takes twice the memory of the others


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The images that the source paints (sec. 3.2; the paper: 10,000 prompts, 2 seeds each)."""

    prompts: int = 10_000
    seeds_per_prompt: int = 2
    sizes: Sequence[Size] = (USUAL_SIZE,)  # each gets its share
    cpu_offload: bool = False  # the parts of the source are on the GPU by turns

    @property
    def images(self) -> int:
        return self.prompts * self.seeds_per_prompt


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """What `l2p_arch.surgery.convert` is asked for."""

    patch_size: int = 16
    head_channels: tuple[int, ...] = (64, 128, 256, 512)
    recipe: str = "paper"
    decoder: str = "auto"
    reading: str = "auto"
    polish: str | tuple[float, ...] = "auto"
    dtype: str | None = None  # of the written weights; None: as in the source


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """GenEval of both models, and what its judges need."""

    images_per_prompt: int = 4
    num_inference_steps: int = 30  # of the L2P model
    guidance_scale: float = 2.0
    size: Size = USUAL_SIZE  # of the L2P model's images
    source_size: Size = USUAL_SIZE
    floor: bool = True  # the source paints a second set, with other seeds
    dtype: str = "auto"
    cpu_offload: bool = False
    metadata: Path | None = None  # GenEval's; None: not asked for
    judges: Mapping[str, Path | None] = field(default_factory=dict)  # keys of `PUBLISHED_JUDGES`


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A whole transfer.

    Attributes:
        train: the trainer's settings; `train.model` need not exist.
        processes: of the training, one GPU each.
        trained_sizes: of the images as they are trained; (): as they are painted.
    """

    source: Source
    train: TrainConfig
    processes: int = 1
    corpus: Corpus = field(default_factory=Corpus)
    trained_sizes: Sequence[Size] = ()
    surgery: Surgery = field(default_factory=Surgery)
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def trained_size(self) -> Size:
        """The largest image that is trained: memory and time are counted for it."""
        return largest(self.trained_sizes or self.corpus.sizes)


def largest(sizes: Sequence[Size]) -> Size:
    """Return the one of most pixels."""
    return max(sizes, key=lambda size: size.pixels)
