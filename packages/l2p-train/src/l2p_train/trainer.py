"""The training run: one DeepSpeed loop for every ZeRO stage, number of processes and launcher.

    load -> freeze -> embed the prompts -> wrap -> [resume] -> steps -> checkpoint -> export

All randomness and the data order are functions of the step (noise.py, data.py), so resuming is loading the
checkpoint and going on; running the same command again does it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from l2p_train import checkpoint as checkpoints
from l2p_train.conditioning import ConditioningCache, encode_missing, encoder_hash, source_family
from l2p_train.config import TrainConfig
from l2p_train.corpus import Corpus
from l2p_train.data import Batch, BatchMaker, prefetched, save_batches
from l2p_train.engine import (
    attention_for_device,
    build_engine,
    distributed,
    explain_out_of_memory,
    load_model,
    set_learning_rate,
)
from l2p_train.errors import Interrupted, NonFiniteLossError
from l2p_train.export import base_hash, export_model
from l2p_train.freeze import plan_for_model
from l2p_train.metrics import SIGMA_BINS, Event, Reporter, last_loss, peak_memory_mb
from l2p_train.objective import LOSS_WEIGHTINGS, l2p_loss
from l2p_train.run_directory import TrainResult, latest_checkpoint, only_run, read_result, stop_signals
from l2p_train.samples import draw_samples, load_scheduler, plan_samples, save_grid
from l2p_train.schedule import ema_decay, learning_rate_factor

logger = logging.getLogger(__name__)


def train(config: TrainConfig, on_event: Callable[[Event], None] | None = None) -> TrainResult:
    """Run a training to its end in this process, one of those that the launcher started (or the only one).

    Args:
        config: all settings; `config.output` resumes if it holds a checkpoint.
        on_event: called in process 0 with every record of metrics.jsonl.

    Raises:
        TrainError: a user's mistake, in one line.
        NonFiniteLossError: the loss is infinite or NaN; the batch is saved in `output/non-finite`.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    finished = read_result(config)
    if finished is not None:
        return finished
    with (
        stop_signals() as stop,
        distributed() as (rank, processes),
        only_run(config.output, rank),
        attention_for_device(),
        explain_out_of_memory(),
    ):
        return Session(config, rank, processes, stop, on_event).run()


class Session:
    """One process's part of a run: what `train` sets up, and the loop. `stop` is filled by `stop_signals`."""

    def __init__(
        self,
        config: TrainConfig,
        rank: int = 0,
        processes: int = 1,
        stop: list[int] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.started = time.perf_counter()
        self.config, self.rank, self.stop = config, rank, stop or [0]
        config.output.mkdir(parents=True, exist_ok=True)
        config.batch_layout(processes)
        self.base = base_hash(config.model)
        self.resumed = latest_checkpoint(config, self.base)
        self.step = self.resumed.step if self.resumed else 0
        self.corpus = Corpus(config.corpus, config.image_cache_mb)
        model = load_model(config)
        self.plan = plan_for_model(
            model,
            trainable=config.trainable,
            train_patterns=config.train_patterns,
            freeze_patterns=config.freeze_patterns,
        )
        self.sample_plan = plan_samples(config, self.corpus, model.patch_size)
        self.reporter = Reporter(
            config.output,
            active=rank == 0,
            first_step=self.step,
            tensorboard=config.tensorboard,
            on_event=on_event,
        )
        self.conditioning = self._embed_prompts(rank, processes)
        self.maker = BatchMaker(
            config,
            self.corpus,
            self.conditioning,
            patch_size=model.patch_size,
            rank=rank,
            world_size=processes,
        )
        self.engine, self.masters = build_engine(model, self.plan, config, processes)
        self.scheduler = load_scheduler(config.model)
        self.interval = torch.zeros(2 + 2 * SIGMA_BINS, dtype=torch.float64)  # sums since the last report
        self.ema = [shard.detach().clone() for shard in self.masters.shards] if config.ema_decay else None

    def run(self) -> TrainResult:
        """Resume if there is something to resume, train, export."""
        if self.resumed:
            checkpoints.load_checkpoint(self.resumed, self.masters, self.ema)
            self.interval = torch.tensor(self.resumed.state["interval"], dtype=torch.float64)
        if self.rank == 0:
            self.plan.save(self.config.output / "freeze_table.json")
            logger.info("%s", self.plan.table())
        counts = {"trainable": self.plan.trainable_count, "frozen": self.plan.frozen_count}
        self.reporter.event("start", step=self.step, steps=self.config.steps, **counts)
        self.reporter.restart(self.step)
        loop_started, first = time.perf_counter(), self.step
        for step, batches in prefetched(
            self.maker, range(self.step, self.config.steps), self.config.loader_workers
        ):
            totals = self.train_step(step, batches)
            self.step = step + 1
            self._check(totals, batches)
            self.interval += totals[:-1]
            self._after_step(stopping=int(totals[-1]))
        rate = (self.step - first) * self.config.batch_size / max(1e-9, time.perf_counter() - loop_started)
        return self._finish(rate)

    def train_step(self, step: int, batches: list[Batch]) -> Tensor:
        """Do one optimiser step; return the sums of `_summary` over all processes."""
        self.engine.train()
        losses = []
        for batch in batches:
            x_0, noise, sigma = (self._to_device(value) for value in (batch.x_0, batch.noise, batch.sigma))
            loss = l2p_loss(self.engine, x_0, noise, sigma, batch.conditioning)
            weight = LOSS_WEIGHTINGS[self.config.loss_weighting](sigma)
            self.engine.backward((weight * loss).mean())
            losses.append(loss.detach())
            if batch is batches[-1]:
                set_learning_rate(
                    self.engine, self.config.learning_rate * learning_rate_factor(step, self.config)
                )
            self.engine.step()
        if self.ema is not None:
            decay = ema_decay(step, self.config)
            torch._foreach_lerp_(self.ema, [shard.detach() for shard in self.masters.shards], 1 - decay)
        return self._summary(torch.cat(losses), torch.cat([batch.sigma for batch in batches]))

    def _to_device(self, value: Tensor) -> Tensor:
        if self.engine.device == value.device:
            return value
        return value.pin_memory().to(self.engine.device, non_blocking=True)

    def _summary(self, losses: Tensor, sigma: Tensor) -> Tensor:
        """Sum over all processes: [loss, count, loss per sigma bin ..., count per bin ..., stop signal]."""
        losses = losses.double().cpu()
        bins = (sigma * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1)
        sums = torch.zeros(2 * SIGMA_BINS, dtype=torch.float64)
        sums[:SIGMA_BINS].index_add_(0, bins, losses)
        sums[SIGMA_BINS:].index_add_(0, bins, torch.ones_like(losses))
        mine = torch.cat(
            (torch.stack((losses.sum(), torch.tensor(float(len(losses))))), sums, torch.zeros(1))
        )
        mine = mine.to(self.engine.device)
        stopping = torch.tensor([float(self.stop[0])], dtype=torch.float64, device=self.engine.device)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(mine)
            torch.distributed.all_reduce(stopping, op=torch.distributed.ReduceOp.MAX)
        mine[-1] = stopping[0]
        return mine.cpu()

    def _check(self, totals: Tensor, batches: list[Batch]) -> None:
        """Stop on a non-finite loss, with each process's batch saved; no checkpoint is written."""
        if bool(torch.isfinite(totals[0])):
            return
        folder = self.config.output / "non-finite"
        save_batches(folder / f"step-{self.step:06d}-rank-{self.rank:03d}.safetensors", batches)
        raise NonFiniteLossError(
            f"the loss of step {self.step} is {float(totals[0])}; the batch is in {folder}. Lower "
            f"learning_rate, set gradient_clipping, or look at the images of the batch; the last checkpoint "
            f"is intact"
        )

    def _after_step(self, stopping: int) -> None:
        """Report, sample, save a checkpoint, stop: whatever is due after `self.step` steps."""
        config, step, last = self.config, self.step, self.step == self.config.steps
        if step % config.log_every == 0 or last:
            self._report()
        paused = time.perf_counter()
        if config.sample_every and (step % config.sample_every == 0 or last) and self.sample_plan.prompts:
            self._sample()
        if stopping or last or (config.checkpoint_every and step % config.checkpoint_every == 0):
            self.saved = checkpoints.save_checkpoint(
                config.output / "checkpoints",
                step,
                config,
                self.masters,
                self.ema,
                base=self.base,
                interval=self.interval.tolist(),
            )
        self.reporter.pause(time.perf_counter() - paused)
        if stopping and not last:
            self.reporter.event("interrupted", step=step, signal=stopping)
            self.reporter.close()
            raise Interrupted(stopping, step)

    def _report(self) -> None:
        loss, count = float(self.interval[0]), float(self.interval[1])
        sums, counts = self.interval[2 : 2 + SIGMA_BINS], self.interval[2 + SIGMA_BINS :]
        self.last_loss = loss / count
        self.reporter.step(
            self.step,
            self.config.steps,
            self.config.batch_size,
            loss=self.last_loss,
            loss_by_sigma=[float(s / n) if n else None for s, n in zip(sums, counts, strict=True)],
            learning_rate=self.config.learning_rate * learning_rate_factor(self.step - 1, self.config),
            gradient_norm=float(self.engine.get_global_grad_norm() or 0.0),
            epoch=self.maker.plan.epoch_of(self.step - 1),
        )
        self.interval.zero_()

    def _sample(self) -> None:
        with self.masters.model_uses(self.ema):
            images = draw_samples(
                self.engine.module, self.scheduler, self.sample_plan, self.conditioning, self.config
            )
        if self.rank == 0:
            path = self.config.output / "samples" / f"step-{self.step:06d}.png"
            save_grid(path, self.sample_plan, images, self.corpus)
            self.reporter.image("samples", path, self.step)
            self.reporter.event("sample", step=self.step, path=str(path))

    def _embed_prompts(self, rank: int, processes: int) -> ConditioningCache:
        """Encode what the cache lacks, each process a share; return the cache with the encoder gone."""
        config = self.config
        components = source_family(config.model).text_components
        directory = (
            config.output
            / "conditioning"
            / encoder_hash(config.model, components, config.max_sequence_length)
        )
        cache = ConditioningCache(directory)
        wanted = cache.missing(["", *(row.prompt for row in self.corpus.rows), *self.sample_plan.prompts])
        # Every process must have looked before the first one writes: the shares come from equal lists.
        torch.distributed.barrier()
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        share = wanted[rank::processes]
        for done in encode_missing(
            config.model, share, directory, max_sequence_length=config.max_sequence_length, device=device
        ):
            self.reporter.event("embed", done=done, of=len(share))
            if self.stop[0]:
                raise Interrupted(self.stop[0], self.step)
        torch.distributed.barrier()
        cache.refresh()
        return cache

    def _finish(self, images_per_second: float) -> TrainResult:
        """Export the final model and write result.json."""
        config, model = self.config, self.config.output / "model"
        if not hasattr(self, "saved"):  # resumed at the last step
            assert self.resumed is not None
            self.saved = self.resumed
        loss = self.last_loss if hasattr(self, "last_loss") else last_loss(config.output / "metrics.jsonl")
        if self.rank == 0:
            export_model(config.model, self.saved, model)
        result = TrainResult(
            model=str(model),
            steps=self.step,
            loss=loss,
            seconds=round(time.perf_counter() - self.started, 2),
            images_per_second=round(images_per_second, 3),
            peak_memory_mb=round(peak_memory_mb(), 1),
            trainable_parameters=self.plan.trainable_count,
            frozen_parameters=self.plan.frozen_count,
        )
        if self.rank == 0:
            temporary = config.output / "result.tmp"
            temporary.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
            temporary.replace(config.output / "result.json")
        self.reporter.event(
            "end", step=self.step, **{k: v for k, v in asdict(result).items() if k != "steps"}
        )
        self.reporter.close()
        torch.distributed.barrier()
        return result
