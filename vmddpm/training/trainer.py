"""Training: one function, read from top to bottom.

Nothing random depends on anything but the seed and the numbers of step and image (`batches`): not on how often the run
was stopped, not on how many processes share a batch. A run that is continued ends in the weights of one that was never
stopped.
"""

import math
import time
from contextlib import closing, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vmddpm.data import DataError
from vmddpm.diffusion import diffusion_loss, sample
from vmddpm.evaluation.images import Images
from vmddpm.seeding import mix_seed
from vmddpm.training.batches import WEIGHTS, ahead, inputs_at
from vmddpm.training.checkpoints import Stateful
from vmddpm.training.config import RunConfig, TrainingConfig
from vmddpm.training.data_identity import checksums, difference
from vmddpm.training.errors import TrainingError
from vmddpm.training.interrupts import stop_requests
from vmddpm.training.networks import build_network
from vmddpm.training.pictures import grid, save_loss_curve, save_png
from vmddpm.training.ranks import Ranks, joined, rank_and_count
from vmddpm.training.report import Report
from vmddpm.training.run_folder import RunFolder

GIVE_UP_AFTER = 50  # steps in a row without a finite gradient
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(config: RunConfig, dataset: Images, folder: RunFolder, *, progress: bool = True) -> nn.Module:
    """Trains a network on `dataset` in `folder`, or continues the run that is there.

    Under `torchrun` all processes call it; they share each batch, and the first one alone touches `folder`.

    Args:
        config: the run.
        dataset: float32 (C, size, size) images in [-1, 1]; its length and order must not change between runs.
        folder: see `run_folder`.
        progress: show a bar with the loss, images per second and time left.

    Returns:
        The network with its averaged (EMA) weights.

    Raises:
        RunError: if the folder cannot be used, before anything is written to it, or a checkpoint cannot be written.
        TrainingError: if the data set is empty or not the one the run was begun with, before anything is written, or
            the loss stays infinite.
        DataError: if an image cannot be read: at the start, before anything is written; later, when what was trained is
            saved.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when what was trained is saved.
    """
    options = config.training
    if len(dataset) == 0:
        raise TrainingError("the data set has no image")
    count = rank_and_count()[1]
    if options.batch_size < count:
        raise TrainingError(f"training.batch_size is {options.batch_size}; {count} processes need one image each")
    data = checksums(dataset)
    with (
        joined(options.device, scans=config.system == "vmddpm") as ranks,
        folder.training(config) if ranks.first else nullcontext((None, None)) as (checkpoints, saved),
        stop_requests() as stop_asked,
    ):
        saved = ranks.from_first(saved)
        refuse_other_data(dataset, data, ranks.from_first(saved["data"] if saved else data))
        torch.manual_seed(mix_seed(options.seed, WEIGHTS) & 0xFFFFFFFF)
        network = build_network(config).to(ranks.device).train()
        ema = build_network(config).to(ranks.device).eval().requires_grad_(False)
        ema.load_state_dict(network.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.precision == "fp16")
        parts: dict[str, Stateful] = {"model": network, "ema": ema, "optimizer": optimizer, "scaler": scaler}
        step, seconds, skipped = 0, 0.0, 0  # seconds of training, without samples and checkpoints
        if saved:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            step, seconds, skipped = saved["step"], saved["seconds"], saved["skipped"]
        if ranks.first:
            folder.begin(config, step)
        if options.compile != "no":
            network.compile(mode=options.compile)
        shared = ranks.shared(network)

        def save() -> None:
            if checkpoints is not None:  # in the first process
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoints.save(step, {**state, "seconds": seconds, "skipped": skipped, "data": data})
                folder.save_weights("raw", network)
                folder.save_weights("ema", ema)

        rows = ranks.rows(options.batch_size)
        if ranks.count > 1 and not finished(options, step, seconds):
            # DistributedDataParallel chooses its final order of sums after the first backward: one goes for nothing, so
            # that the first step of a continued run sums as any other.
            add_gradients(shared, scaler, inputs_at(dataset, step, config, rows), step, config, ranks)
        skipped_in_a_row, stopped, clock = 0, False, time.perf_counter()
        with (
            closing(ahead(lambda at: inputs_at(dataset, at, config, rows), step)) as batches,
            Report(folder, options, step, seconds, ranks.device, progress) if ranks.first else nullcontext() as report,
        ):
            while not finished(options, step, seconds) and not stopped:
                try:
                    inputs = next(batches)
                except (DataError, OSError) as error:
                    save()
                    raise DataError(f"{error}; the run is saved at step {step}") from error
                optimizer.param_groups[0]["lr"] = rate = learning_rate_at(options, step, seconds)
                optimizer.zero_grad(set_to_none=True)
                share = add_gradients(shared, scaler, inputs, step, config, ranks)
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(network.parameters(), options.gradient_clip)
                mine = torch.stack([share, norm.to(share)]).tolist()
                took = time.perf_counter() - clock
                clock += took
                loss, took, stops = ranks.sum(mine[0], took if ranks.first else 0.0, stop_asked())
                stopped = stops > 0
                finite = math.isfinite(loss) and math.isfinite(mine[1])
                if finite:
                    scaler.step(optimizer)
                    update_ema(ema, network, options.ema_decay, step)
                scaler.update()
                skipped += not finite
                skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
                if skipped_in_a_row == GIVE_UP_AFTER:
                    raise TrainingError(
                        f"the loss or its gradient was not finite for {GIVE_UP_AFTER} steps up to step {step}; lower "
                        f"training.learning_rate ({options.learning_rate:g}) or set training.precision to fp32"
                    )
                step += 1
                seconds += took
                if report is not None:
                    report.step(step, seconds, {"loss": loss, "gradient_norm": mine[1], "learning_rate": rate,
                                                "skipped": skipped})  # fmt: skip
                if ranks.first and options.sample_every and step % options.sample_every == 0:
                    save_samples(ema, config, folder, step)
                    clock = time.perf_counter()
                if step % options.checkpoint_every == 0:
                    save()
                    clock = time.perf_counter()
            save()
            if stopped and report is not None:
                report.say(f"stopped and saved at step {step}; run the same command again to go on")
        if stopped:
            raise KeyboardInterrupt
        if ranks.first:
            save_loss_curve(folder.metrics(), folder.path / "loss.png")
        return ema


def refuse_other_data(dataset: Images, now: Tensor, before: Tensor) -> None:
    if told := difference(dataset, now, before):
        raise TrainingError(
            f"{told}; give the run the same data (data.root), or begin a new one in another folder. Nothing was changed"
        )


def add_gradients(
    network: nn.Module,
    scaler: torch.amp.GradScaler,
    inputs: tuple[Tensor, Tensor, Tensor],
    step: int,
    config: RunConfig,
    ranks: Ranks,
) -> Tensor:
    """Leaves the gradient of the batch's mean loss, scaled, in the parameters of every process.

    Args:
        network: `Ranks.shared` of it.
        inputs: this process's rows of the batch; they go through the network `micro_batch_size` at a time.

    Returns:
        This process's part of the mean loss: the parts of all add up to it.
    """
    options = config.training
    device, dtype = ranks.device, AUTOCAST[options.precision]
    loss_here = torch.zeros((), device=device)
    parts = list(zip(*(values.split(options.micro_batch_size or len(values)) for values in inputs)))
    for part in parts:
        x0, t, noise = (values.to(device, non_blocking=True) for values in part)
        last = part is parts[-1]
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = diffusion_loss(network, x0, t, noise, (options.seed, step), config.diffusion)
            loss = loss * (len(x0) / options.batch_size)
            scaler.scale(loss * ranks.count).backward()  # processes are averaged, not added
        loss_here += loss.detach()
    return loss_here


def finished(options: TrainingConfig, step: int, seconds: float) -> bool:
    return step >= options.steps or (options.minutes is not None and seconds >= 60 * options.minutes)


def learning_rate_at(options: TrainingConfig, step: int, seconds: float) -> float:
    """Linear warm-up, constant, and a linear fall to a tenth over the last `cooldown` of the run."""
    done = step / max(options.steps, 1)
    if options.minutes:
        done = max(done, seconds / (60 * options.minutes))
    left = min(1.0, (1 - done) / options.cooldown) if options.cooldown else 1.0
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warm * (0.1 + 0.9 * max(left, 0.0))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay ema + (1 - decay) model, over parameters and buffers; counters are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    pairs = zip(ema.state_dict().values(), model.state_dict().values())
    for average, value in pairs:
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
        else:
            average.copy_(value)


def save_samples(model: nn.Module, config: RunConfig, folder: RunFolder, step: int) -> None:
    """The same images at every step of a run, by DDIM."""
    images = sample(
        model, range(config.training.sample_count), (config.data.channels, config.data.size, config.data.size),
        config=config.diffusion, sampler="ddim", steps=config.training.sample_steps, seed=config.training.seed,
    )  # fmt: skip
    save_png(grid(images), folder.path / "samples" / f"step-{step:08d}.png")
