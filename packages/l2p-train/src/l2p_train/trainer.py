"""The training run: one DeepSpeed loop for every ZeRO stage, number of processes and launcher.

    load -> freeze -> embed the prompts -> wrap -> [resume] -> steps -> checkpoint -> export

All randomness and the data order are functions of the step (noise.py, data/batches.py), so resuming is
loading the checkpoint and going on; running the same command again does it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from l2p_arch.polish import grain_sigmas
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.data.batches import Batch, BatchMaker, prefetched, refuse_non_finite
from l2p_train.data.conditioning import embed_prompts
from l2p_train.data.corpus import open_corpus
from l2p_train.data.shards import check_corpus
from l2p_train.distillation import check_schedule, distillation_loss, load_teacher, step_weight
from l2p_train.errors import Interrupted
from l2p_train.flops import flops_or_none, peak_tflops
from l2p_train.freeze import plan_for_model
from l2p_train.image_terms import image_terms
from l2p_train.objective import l2p_loss, l2p_losses, weighting
from l2p_train.report.metrics import (
    SIGMA_BINS,
    Event,
    Reporter,
    last_loss,
    loss_by_sigma,
    loss_sums,
    peak_memory_mb,
)
from l2p_train.report.samples import draw_samples, load_scheduler, plan_samples, save_grid
from l2p_train.report.validation import Validation, split_rows
from l2p_train.run import checkpoint as checkpoints
from l2p_train.run.export import base_hash, export_model
from l2p_train.run.mirror import Mirror
from l2p_train.run.run_directory import (
    TrainResult,
    check_apart,
    check_same_corpus,
    explain_full_disk,
    latest_checkpoint,
    only_run,
    read_result,
    stop_signals,
    write_result,
)
from l2p_train.schedule import ema_decay, learning_rate_factor
from l2p_train.student import check_trained, prepare_student
from l2p_train.zero.engine import (
    attention_for_device,
    average_gradients,
    build_engine,
    distributed,
    explain_out_of_memory,
    load_model,
    set_learning_rate,
    share_gradients,
    uncompiled,
)
from l2p_train.zero.quantised import quantise_frozen

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
    check_apart(config)
    Mirror(config).fetch()
    finished = read_result(config)
    if finished is not None:
        return finished
    with (
        stop_signals() as stop,
        distributed() as (rank, processes),
        only_run(config.output, rank, stop),
        attention_for_device(),
        explain_out_of_memory(),
        explain_full_disk(config.output),
    ):
        if int(os.environ.get("LOCAL_RANK", rank)) == 0:  # one of each machine; what was hashed is remembered
            check_corpus(config.corpus)
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
        self.mirror = Mirror(config)
        self.mirror.settle(rank)
        self.base = base_hash(config.model)
        self.resumed = latest_checkpoint(config, self.base)
        self.step = self.resumed.step if self.resumed else 0
        self.corpus = open_corpus(config)
        if self.resumed:
            check_same_corpus(self.resumed, self.corpus.digest, config)
        model = load_model(config)
        prepare_student(model, config)
        self.scheduler = load_scheduler(config.model)
        check_schedule(self.scheduler, config, model.noise_scale)
        config.check_recipe(aligned=model.aligner is not None, polishes=bool(model.polish))
        self.weight = (
            step_weight(config.distil_steps, config.noise_shift * model.noise_scale)
            if config.loss_weighting == "step"
            else weighting(config.loss_weighting, model)
        )
        self.plan = plan_for_model(
            model,
            trainable=config.trainable,
            train_patterns=config.train_patterns,
            freeze_patterns=config.freeze_patterns,
        )
        check_trained(config, self.plan, model)
        if config.frozen_weights == "int8":
            quantise_frozen(model, self.plan)
        self.sample_plan = plan_samples(config, self.corpus, model.patch_size)
        self.reporter = Reporter(config, active=rank == 0, first_step=self.step, on_event=on_event)
        prompts = ["", *(row.prompt for row in self.corpus.rows), *self.sample_plan.prompts]
        self.conditioning = embed_prompts(config, prompts, rank, processes, self._embedded, self.mirror.share)
        training, held_out = split_rows(self.corpus, config.validation_images, config.seed)
        shifted = replace(config, noise_shift=config.noise_shift * model.noise_scale)
        if config.distil_steps:  # the sigmas that the student will be sampled at, and no others
            shifted = replace(shifted, sigma_distribution="discrete", sigma_points=config.distil_steps)
        sources = (shifted, self.corpus, self.conditioning)
        scales = model.guidance_range if config.distils else None
        share: dict[str, Any] = {"patch_size": model.patch_size, "rank": rank, "world_size": processes}
        share["scales"] = scales
        grain = next(iter(grain_sigmas(model.polish, model.enlargement)), 0.0)
        self.maker = BatchMaker(*sources, **share, rows=training, polish=grain)
        self.validation = Validation(*sources, **share, rows=held_out) if held_out else None
        if rank == 0:
            flops = flops_or_none(config, self.plan, self.sample_plan.size, self.conditioning[prompts[1]])
            self.reporter.count_flops(flops.step if flops else 0.0, peak_tflops(config), processes)
        self.engine, self.masters = build_engine(model, self.plan, config, processes)
        self.shared_memory = share_gradients(self.engine, self.plan, config)
        self.teacher = (
            load_teacher(config, self.plan, self.engine.module, self.conditioning[""])
            if config.distils
            else None
        )
        self.terms = image_terms(config, shifted.noise_shift, self.engine.device)
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
        steps = range(self.step, self.config.steps)
        loader = prefetched(self.maker, steps, self.config.loader_workers, self.engine.device)
        for step, batches in self.reporter.waiting(loader):
            totals = self.train_step(step, batches)
            self.step = step + 1
            refuse_non_finite(float(totals[0]), batches, self.config.output, self.step, self.rank)
            self.interval += totals[:-1]
            self._after_step(stopping=int(totals[-1]))
        rate = (self.step - first) * self.config.batch_size / max(1e-9, time.perf_counter() - loop_started)
        return self._finish(rate)

    def train_step(self, step: int, batches: list[Batch]) -> Tensor:
        """Do one optimiser step; return the sums of `_summary` over all processes."""
        self.engine.train()
        losses = []
        for batch in batches:
            x_0, noise, sigma = (
                value.to(self.engine.device, non_blocking=True)  # pinned by the loader
                for value in (batch.x_0, batch.noise, batch.sigma)
            )
            sample = (x_0, noise, sigma, batch.conditioning)
            added: Tensor | None = None
            if self.teacher:
                loss = distillation_loss(self.engine, self.teacher, *sample)
            else:
                counts = step >= self.config.image_terms_from * self.config.steps
                loss, added = l2p_losses(self.engine, *sample, self.terms if counts else None)
            weighted = self.weight(sigma) * loss
            self.engine.backward((weighted if added is None else weighted + added).mean())
            losses.append(loss.detach())
            if batch is batches[-1]:
                rate = self.config.learning_rate * learning_rate_factor(step, self.config)
                set_learning_rate(self.engine, rate)
                if self.shared_memory is not None:
                    average_gradients(self.engine, self.shared_memory)
            self.engine.step()
        if self.ema is not None:
            decay = ema_decay(step, self.config)
            torch._foreach_lerp_(self.ema, [shard.detach() for shard in self.masters.shards], 1 - decay)
        return self._summary(torch.cat(losses), torch.cat([batch.sigma for batch in batches]))

    def _loss(self, model: Any, *sample: Any) -> Tensor:
        """Return what the run minimises, per sample: `sample` is x_0, noise, sigma and conditioning."""
        return distillation_loss(model, self.teacher, *sample) if self.teacher else l2p_loss(model, *sample)

    def _summary(self, losses: Tensor, sigma: Tensor) -> Tensor:
        """Sum over all processes: `loss_sums`, and the stop signal."""
        mine = loss_sums(losses, sigma).to(self.engine.device)
        stopping = torch.tensor([float(self.stop[0])], dtype=torch.float64, device=self.engine.device)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(mine)
            torch.distributed.all_reduce(stopping, op=torch.distributed.ReduceOp.MAX)
        return torch.cat((mine, stopping)).cpu()

    def _after_step(self, stopping: int) -> None:
        """Report, sample, save a checkpoint, stop: whatever is due after `self.step` steps."""
        config, step, last = self.config, self.step, self.step == self.config.steps
        if step % config.log_every == 0 or last:
            self._report()
        paused = time.perf_counter()
        if self.sample_plan.prompts and (_due(step, config.sample_every) or (last and config.sample_every)):
            self._sample()
        saving = last or stopping or _due(step, config.checkpoint_every)
        # A stop is obeyed at once: whoever sends the signal may not wait for a validation.
        validating = (saving and not stopping) or _due(step, config.validate_every)
        validation_loss = self._validate() if self.validation and validating else None
        if saving:
            self.saved = checkpoints.save_checkpoint(
                config.output / "checkpoints",
                step,
                config,
                self.masters,
                self.ema,
                self.mirror,
                base=self.base,
                corpus=self.corpus.digest,
                interval=self.interval.tolist(),
                validation_loss=validation_loss,
            )
        self.reporter.pause(time.perf_counter() - paused)
        if stopping and not last:
            self.reporter.event("interrupted", step=step, signal=stopping)
            self.reporter.close()
            raise Interrupted(stopping, step)

    def _report(self) -> None:
        self.last_loss = float(self.interval[0] / self.interval[1])
        self.reporter.step(
            self.step,
            self.config.steps,
            self.config.batch_size,
            loss=self.last_loss,
            loss_by_sigma=loss_by_sigma(self.interval),
            learning_rate=self.config.learning_rate * learning_rate_factor(self.step - 1, self.config),
            gradient_norm=float(self.engine.get_global_grad_norm() or 0.0),
            epoch=self.maker.plan.epoch_of(self.step - 1),
        )
        self.interval.zero_()

    def _validate(self) -> float:
        """Report the held-out loss of the weights that would be exported."""
        assert self.validation is not None
        with self.masters.model_uses(self.ema), uncompiled():
            loss, by_sigma = self.validation.loss(self.engine.module, self.engine.device, self._loss)
        self.reporter.event("validation", step=self.step, loss=loss, loss_by_sigma=by_sigma)
        return loss

    def _sample(self) -> None:
        with self.masters.model_uses(self.ema), uncompiled():
            images = draw_samples(
                self.engine.module, self.scheduler, self.sample_plan, self.conditioning, self.config
            )
        if self.rank == 0:
            path = self.config.output / "samples" / f"step-{self.step:06d}.png"
            save_grid(path, self.sample_plan, images, self.corpus)
            self.reporter.image("samples", path, self.step)
            self.reporter.event("sample", step=self.step, path=str(path))

    def _embedded(self, done: int, of: int) -> None:
        self.reporter.event("embed", done=done, of=of)
        if self.stop[0]:
            raise Interrupted(self.stop[0], self.step)

    def _finish(self, images_per_second: float) -> TrainResult:
        """Export the final model and write result.json."""
        config, model = self.config, self.config.output / "model"
        if not hasattr(self, "saved"):  # resumed at the last step
            assert self.resumed is not None
            self.saved = self.resumed
        loss = self.last_loss if hasattr(self, "last_loss") else last_loss(config.output / "metrics.jsonl")
        if self.rank == 0:
            best = checkpoints.best_checkpoint(checkpoints.list_checkpoints(config.output / "checkpoints"))
            chosen = best if best and config.export == "best" else self.saved
            self.mirror.complete(chosen)
            export_model(config.model, chosen, model)
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
            write_result(config, result)
        self.reporter.event(
            "end", step=self.step, **{k: v for k, v in asdict(result).items() if k != "steps"}
        )
        self.reporter.close()
        if self.rank == 0:
            self.mirror.put_result()
        torch.distributed.barrier()
        return result


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
