"""Progress of a run: metrics.jsonl, TensorBoard, a progress bar, and the expected end."""

import resource
from datetime import datetime, timedelta
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vmddpm.training.config import TrainingConfig
from vmddpm.training.run_folder import RunFolder

MAX_SECONDS_LEFT = 50 * 365 * 86400.0  # seconds; a later end is not given as a date
TIMED = 10  # steps before the speed is reported; the slow first one is left out


class Report:
    """Reports the progress of a run.

    Args:
        step, seconds: steps taken before, and the time they took.
        device: the device whose peak memory is reported.
        shown: whether to show a progress bar.
    """

    def __init__(
        self, folder: RunFolder, options: TrainingConfig, step: int, seconds: float, device: torch.device, shown: bool
    ) -> None:
        self.folder, self.options, self.device = folder, options, device
        self.logged = step, seconds
        self.began = step
        self.after_first = seconds
        self.board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step)
        self.bar = tqdm(
            total=self.steps_in_time(step, seconds), initial=step, unit="step", disable=not shown, dynamic_ncols=True
        )
        if step and shown:
            done = options.steps <= step
            self.log(f"the run has its {step:,} steps; raise training.steps for more" if done
                     else f"continues from step {step:,}")  # fmt: skip

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()
        self.board.close()

    def step(self, step: int, seconds: float, metrics: dict[str, Any]) -> None:
        """Report a step; `step` and `seconds` include it."""
        if step == self.began + 1:
            self.after_first = seconds
        if step == self.began + TIMED and not self.bar.disable:
            self.log(self.remaining_time(step, seconds, (seconds - self.after_first) / (TIMED - 1), datetime.now()))
        if step % self.options.log_every == 0:
            speed = (step - self.logged[0]) * self.options.batch_size / (seconds - self.logged[1])
            self.logged = step, seconds
            memory = peak_memory_mib(self.device)
            metrics = {"step": step, **metrics, "seconds": round(seconds, 2), "images_per_second": round(speed, 2),
                       "peak_memory_mib": memory}  # fmt: skip
            self.folder.log(metrics)
            for name in ("loss", "gradient_norm", "images_per_second", "peak_memory_mib"):
                self.board.add_scalar(name, metrics[name], step)
            self.bar.total = self.steps_in_time(step, seconds)
            self.bar.set_postfix(loss=f"{metrics['loss']:.4f}", images_per_s=f"{speed:.1f}", refresh=False)
        self.bar.update()

    def steps_in_time(self, step: int, seconds: float) -> int | None:
        """The steps of the whole run, or as many as its minutes allow; None while that is unknown."""
        if not self.options.minutes:
            return self.options.steps
        return min(self.options.steps, round(step * 60 * self.options.minutes / seconds)) if seconds > 0 else None

    def remaining_time(self, step: int, seconds: float, seconds_per_step: float, now: datetime) -> str:
        """The time per step, the remaining time and the expected end, in words."""
        left = (self.options.steps - step) * seconds_per_step
        if self.options.minutes:
            left = max(min(left, 60 * self.options.minutes - seconds), 0.0)
        end = f"{now + timedelta(seconds=left):%Y-%m-%d %H:%M}" if left < MAX_SECONDS_LEFT else "not in this century"
        return (
            f"{seconds_per_step:.3g} s a step, {duration(left)} left: it ends about {end}, samples and checkpoints "
            "aside"
        )

    def log(self, text: str) -> None:
        self.bar.write(text)


def duration(seconds: float) -> str:
    """The duration in the largest unit that gives at least 2: 100 -> "100 seconds", 7000 -> "117 minutes", 2e5 -> "2.3
    days"."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            count = seconds / length
            return f"{count:.1f} {unit}" if count < 10 else f"{count:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory so far, in MiB: torch's tensors on a GPU, this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
