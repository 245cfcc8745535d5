"""The sizes of a transfer's images: what the source paints, what is trained, what is
evaluated.
"""

from typing import TYPE_CHECKING

from l2p_run.sizes import Size, nearest_shape

if TYPE_CHECKING:
    from l2p_transfer.config import Config


def painted_sizes(config: "Config") -> tuple[Size, ...]:
    """Return the sizes of the corpus; raises `DataError` where a bucket is no size."""
    return config.images.sizes()


def trained_sizes(config: "Config") -> tuple[Size, ...]:
    """Return what the trainer makes of them: about `train.resolution` squared in area, each of its own
    shape.
    """
    painted, resolution = painted_sizes(config), config.train.resolution
    if resolution is None:
        return painted
    from l2p_train.data.corpus import bucket_size  # loads torch

    patch = config.surgery.patch_size
    return tuple(dict.fromkeys(bucket_size(size, resolution, patch) for size in painted))


def evaluated_size(config: "Config") -> Size:
    """Return the size of the L2P model's images, and how it paints when it is told nothing: `[evaluate]`'s,
    else what it was trained at. With buckets a config has to state it.
    """
    section = config.evaluate
    if section.width is not None and section.height is not None:
        return Size(width=section.width, height=section.height)
    return trained_sizes(config)[0]


def source_size(config: "Config") -> Size:
    """Return the size of the source's images in the evaluation: the L2P model's size; but where the training
    resizes, the painted size of the nearest shape, for which the source was made.
    """
    wanted = evaluated_size(config)
    if config.train.resolution is None:
        return wanted
    return nearest_shape(wanted, painted_sizes(config))
