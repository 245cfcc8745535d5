"""The held-out loss (eq. 5, or a distillation's) at fixed noise: a curve that can be compared along a run,
and what "best" means.

The training loss is drawn with new noise at every step, and most of it is the noise level's own. Here every
image keeps its noise level and its noise for the whole run: image j of n has the quantile (j + 1/2) / n of
the distribution that one trains with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from l2p_run.sizes import Size
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.data.batches import Batch, with_guidance
from l2p_train.data.conditioning import ConditioningCache
from l2p_train.data.corpus import Corpus, bucket_size
from l2p_train.errors import TrainError
from l2p_train.noise import SIGMA_DISTRIBUTIONS, sample_generator
from l2p_train.objective import l2p_loss
from l2p_train.report.metrics import SIGMA_BINS, loss_by_sigma, loss_sums

_FIRST_COUNTER = 2**61  # of the samples' generators; training counts from 0


def split_rows(corpus: Corpus, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Return (rows that train, rows held out): about `held_out` images, all images of some prompts.

    Which prompts follows from a hash of seed and prompt, so that more images of the same prompts or another
    order of shards changes nothing.
    """
    if not held_out:
        return list(range(len(corpus.rows))), []
    by_prompt: dict[str, list[int]] = {}
    for index, row in enumerate(corpus.rows):
        by_prompt.setdefault(row.prompt, []).append(index)
    chosen: list[int] = []
    for prompt in sorted(by_prompt, key=lambda one: hashlib.sha256(f"{seed} {one}".encode()).digest()):
        if len(chosen) >= held_out:
            break
        chosen += by_prompt[prompt]
    held = set(chosen)
    training = [index for index in range(len(corpus.rows)) if index not in held]
    if not training:
        raise TrainError(
            f"validation_images = {held_out} leaves nothing of the {len(corpus.rows)} images to train on; "
            f"use fewer"
        )
    return training, chosen[:held_out]


@dataclass(frozen=True)
class _Part:
    """Images of one size that go through the model together."""

    size: Size
    places: tuple[int, ...]  # among the held-out rows


class Validation:
    """The held-out loss of one run; every process computes its share."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        conditioning: ConditioningCache,
        *,
        rows: Sequence[int],
        patch_size: int,
        rank: int = 0,
        world_size: int = 1,
        scales: tuple[float, float] | None = None,
    ) -> None:
        """Prepare. `scales`: see `with_guidance`."""
        self.scales = scales
        self.config, self.corpus, self.rows, self.conditioning = config, corpus, rows, conditioning
        sizes: dict[Size, list[int]] = {}
        for place, row in enumerate(rows):
            size = bucket_size(corpus.rows[row].size, config.resolution, patch_size)
            sizes.setdefault(size, []).append(place)
        micro, _ = config.batch_layout(world_size)
        parts = [
            _Part(size, tuple(places[first : first + micro]))
            for size, places in sorted(sizes.items(), key=lambda item: item[0].shape)
            for first in range(0, len(places), micro)
        ]
        rounds = -(-len(parts) // world_size)
        # Every process makes the same number of passes, as ZeRO-3 wants it; a filler counts for nothing.
        mine = [rank + turn * world_size for turn in range(rounds)]
        self.parts = [(parts[index % len(parts)], float(index < len(parts))) for index in mine]

    def batch(self, part: _Part) -> Batch:
        """Return the held-out images of a part with their fixed noise."""
        quantiles = torch.tensor(
            [(place + 0.5) / len(self.rows) for place in part.places], dtype=torch.float64
        )
        sigma = SIGMA_DISTRIBUTIONS[self.config.sigma_distribution](quantiles, self.config)
        rows = [self.rows[place] for place in part.places]
        counters = [_FIRST_COUNTER + place for place in part.places]
        noise = [
            torch.from_numpy(
                sample_generator(self.config.seed, counter).standard_normal(
                    (3, *part.size.shape), dtype="float32"
                )
            )
            for counter in counters
        ]
        return Batch(
            counters=counters,
            ids=[self.corpus.rows[row].id for row in rows],
            x_0=torch.stack([self.corpus.image(row, part.size) for row in rows]).float() / 127.5 - 1,
            noise=torch.stack(noise),
            sigma=sigma.float(),
            conditioning=with_guidance(
                [self.conditioning[self.corpus.rows[row].prompt] for row in rows],
                self.config.seed,
                counters,
                self.scales,
            ),
        )

    @torch.no_grad()
    def loss(
        self, model: Any, device: torch.device, measure: Callable[..., Tensor] = l2p_loss
    ) -> tuple[float, list[float | None]]:
        """Return the mean loss and its part per quarter of the sigma axis; collective.

        Args:
            measure: what the run minimises, with the arguments of `l2p_loss`.
        """
        was_training = model.training
        model.eval()
        sums = torch.zeros(2 + 2 * SIGMA_BINS, dtype=torch.float64)
        for part, weight in self.parts:
            batch = self.batch(part)
            x_0, noise, sigma = (value.to(device) for value in (batch.x_0, batch.noise, batch.sigma))
            losses = measure(model, x_0, noise, sigma, batch.conditioning)
            sums += weight * loss_sums(losses, batch.sigma)
        model.train(was_training)
        total: Tensor = sums.to(device)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(total)
        total = total.cpu()
        return float(total[0] / total[1]), loss_by_sigma(total)
