"""How a run is going: lines of metrics.jsonl, TensorBoard, a bar."""

import resource
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vmddpm.training.config import TrainingConfig
from vmddpm.training.run_folder import RunFolder


class Report:
    """Args:
    folder: of the run.
    step, seconds: steps taken before, and the time they took.
    device: whose memory is reported.
    shown: whether there is a bar.
    """

    def __init__(
        self, folder: RunFolder, options: TrainingConfig, step: int, seconds: float, device: torch.device, shown: bool
    ) -> None:
        self.folder, self.options, self.device = folder, options, device
        self.logged = step, seconds
        self.board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step)
        self.bar = tqdm(
            total=self.steps_in_time(step, seconds), initial=step, unit="step", disable=not shown, dynamic_ncols=True
        )
        if step and shown:
            done = options.steps <= step
            self.say(f"the run has its {step:,} steps; training.steps asks for more" if done
                     else f"continues from step {step:,}")  # fmt: skip

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()
        self.board.close()

    def step(self, step: int, seconds: float, metrics: dict[str, Any]) -> None:
        """After each step: `step` and `seconds` as they are now, and the metrics of this step."""
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
        """The steps of the whole run, or those there is time for; None while that is not known."""
        if not self.options.minutes:
            return self.options.steps
        return min(self.options.steps, round(step * 60 * self.options.minutes / seconds)) if seconds > 0 else None

    def say(self, text: str) -> None:
        self.bar.write(text)


def peak_memory_mib(device: torch.device) -> int:
    """The most memory in use so far: that of tensors on a GPU, that of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
