"""The training loop of all systems; a `Learner` takes the steps of one system.

Random numbers depend only on the seed and the numbers of step and image (see `batches`), so a run that was stopped and
continued ends with the same weights as an uninterrupted one, with any number of processes.
"""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vmddpm.allocator import keeping_freed_memory
from vmddpm.baselines.config import GANS
from vmddpm.data import DataError
from vmddpm.data.conditioned import ConditionedImages
from vmddpm.evaluation.images import Images
from vmddpm.seeding import mix_seed
from vmddpm.training.batches import WEIGHTS, prefetch
from vmddpm.training.conditions import refuse_other_classes, refuse_unfit
from vmddpm.training.config import RunConfig, TrainingConfig
from vmddpm.training.data_identity import checksums, difference
from vmddpm.training.diffusion_learner import DiffusionLearner
from vmddpm.training.errors import TrainingError
from vmddpm.training.gan_learner import GANLearner, refuse_unusable
from vmddpm.training.interrupts import stop_requests
from vmddpm.training.learner import Learner
from vmddpm.training.pictures import grid, save_loss_curve, save_png
from vmddpm.training.ranks import process_group, rank_and_count
from vmddpm.training.report import Report
from vmddpm.training.run_folder import RunFolder

MAX_SKIPPED = 50  # consecutive steps without a finite loss and gradient


def train(
    config: RunConfig,
    dataset: Images,
    folder: RunFolder,
    *,
    progress: bool = True,
    after_step: Callable[[int, dict[str, Any]], object] | None = None,
) -> nn.Module:
    """Train the system `config.system` on `dataset` in `folder`, or continue the run there.

    Under `torchrun` all processes call this function. They share each batch, and only the main process uses `folder`.

    Args:
        config: the run.
        dataset: float32 (C, size, size) images in [-1, 1]; the images and their order must not change when a run is
            continued. Conditions of `config.model` come from a `ConditionedImages`.
        folder: see `run_folder`.
        progress: show a bar with the loss, images per second and time left.
        after_step: after_step(steps taken, metrics of the step) is called after each step in the main process.

    Returns:
        The network that draws images (of a GAN, the generator) with its averaged (EMA) weights.

    Raises:
        RunError: if the folder cannot be used, before anything is written to it, or a checkpoint cannot be written.
        TrainingError: if the data set is empty or differs from that of the continued run, or the options do not fit the
            system or the number of processes, before anything is written; or if the loss stays infinite or NaN.
        DataError: if an image cannot be read: before anything is written, or later after saving.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, after saving.
    """
    options = config.training
    _refuse_unusable(config, dataset)
    data = checksums(dataset)
    with (
        keeping_freed_memory(),
        process_group(options.device, scans=config.system == "vmddpm") as ranks,
        folder.training(config) if ranks.is_main else nullcontext((None, None)) as (checkpoints, saved),
        stop_requests() as stop_asked,
    ):
        saved = ranks.broadcast(saved)
        refuse_other_data(dataset, data, ranks.broadcast(saved["data"] if saved else data))
        if saved:
            refuse_other_classes(config.model.classes, saved.get("classes", ()), f"the checkpoint of {folder.path}")
        torch.manual_seed(mix_seed(options.seed, WEIGHTS) & 0xFFFFFFFF)
        learner: Learner[Any] = (GANLearner if config.system in GANS else DiffusionLearner)(config, ranks)
        step, seconds, skipped = 0, 0.0, 0  # seconds exclude samples and checkpoints
        if saved:
            for name, part in learner.parts.items():
                part.load_state_dict(saved[name])
            step, seconds, skipped = saved["step"], saved["seconds"], saved["skipped"]
        if ranks.is_main:
            folder.begin(config, step, getattr(dataset, "remarks", ()))
            if isinstance(dataset, ConditionedImages) and dataset.classes:
                folder.write_class_counts(dataset.counts())

        def save() -> None:
            if checkpoints is not None:  # main process only
                state = {name: part.state_dict() for name, part in learner.parts.items()}
                checkpoints.save(step, {**state, "seconds": seconds, "skipped": skipped, "data": data,
                                        "classes": list(config.model.classes)})  # fmt: skip
                folder.save_weights("raw", learner.raw)
                folder.save_weights("ema", learner.ema)

        rows = ranks.rows(options.batch_size)

        def inputs_at(at: int) -> Any:
            return learner.inputs_at(dataset, at, rows)

        learner.start(inputs_at, step)
        skipped_in_a_row, stopped, clock = 0, False, time.perf_counter()
        with (
            closing(prefetch(inputs_at, step)) as batches,
            nullcontext() if not ranks.is_main
            else Report(folder, options, step, seconds, ranks.device, progress) as report,
        ):
            while not finished(options, step, seconds) and not stopped:
                try:
                    inputs = next(batches)
                except (DataError, OSError) as error:
                    save()
                    raise DataError(f"{error}; the run is saved at step {step}") from error
                rate = learning_rate_at(options, step, seconds)
                finite, metrics = learner.step(inputs, step, rate)
                skipped += not finite
                skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
                if skipped_in_a_row == MAX_SKIPPED:
                    raise TrainingError(
                        f"the loss or its gradient was not finite for {MAX_SKIPPED} steps up to step {step}; lower "
                        f"training.learning_rate ({options.learning_rate:g}) or set training.precision to fp32"
                    )
                step += 1
                took = time.perf_counter() - clock
                clock += took
                took, stops = ranks.sum(took if ranks.is_main else 0.0, stop_asked())
                seconds, stopped = seconds + took, stops > 0
                if report is not None:
                    row = {**metrics, "learning_rate": rate, "skipped": skipped}
                    report.step(step, seconds, row)
                    if after_step is not None:
                        after_step(step, row)
                if ranks.is_main and options.sample_every and step % options.sample_every == 0:
                    images = learner.draw(dataset, options.sample_count)
                    save_png(grid(images), folder.path / "samples" / f"step-{step:08d}.png")
                    clock = time.perf_counter()
                if step % options.checkpoint_every == 0:
                    save()
                    clock = time.perf_counter()
            save()
            if stopped and report is not None:
                report.log(f"stopped and saved at step {step}; run the same command again to go on")
        if stopped:
            raise KeyboardInterrupt
        if ranks.is_main and (logged := folder.metrics()):  # a run shorter than `log_every` has none
            save_loss_curve(logged, folder.path / "loss.png")
        return learner.ema


def _refuse_unusable(config: RunConfig, images: Images) -> None:
    processes = rank_and_count()[1]
    if len(images) == 0:
        raise TrainingError("the data set has no image")
    refuse_unfit(config, images)
    if config.training.batch_size < processes:
        raise TrainingError(
            f"training.batch_size is {config.training.batch_size}; {processes} processes need one image each"
        )
    if config.system in GANS:
        refuse_unusable(config, processes)


def refuse_other_data(dataset: Images, now: Tensor, before: Tensor) -> None:
    if reason := difference(dataset, now, before):
        raise TrainingError(
            f"{reason}; give the run the same data (data.root), or begin a new one in another folder. Nothing was "
            "changed"
        )


def finished(options: TrainingConfig, step: int, seconds: float) -> bool:
    return step >= options.steps or (options.minutes is not None and seconds >= 60 * options.minutes)


def learning_rate_at(options: TrainingConfig, step: int, seconds: float) -> float:
    """Linear warm-up, then constant, then a linear decay to a tenth over the last `cooldown` of the run."""
    done = step / max(options.steps, 1)
    if options.minutes:
        done = max(done, seconds / (60 * options.minutes))
    left = min(1.0, (1 - done) / options.cooldown) if options.cooldown else 1.0
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warm * (0.1 + 0.9 * max(left, 0.0))
