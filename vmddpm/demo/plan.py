"""Divides a budget of minutes between training and drawing, from the measured speed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vmddpm.errors import InputError
from vmddpm.numbers import MAX_MINUTES

BLOCK = 16  # images drawn together, see `vmddpm.diffusion.sample`
MAX_SAMPLER_STEPS = 50
MIN_IMAGES = 4  # images, if there is no time for a whole block
DRAWING_SHARE = 0.15  # the share of the time left that drawing may take
FINISHING_SHARE = 0.04  # the share of the budget for saving weights, curves and the picture
# Observed samples by training steps of a whole run: noise after 25, blobs after 50 and 100, brains after 200, cortex
# and ventricles after 400.
BLOBS, BRAINS, FOLDS = 50, 200, 400


@dataclass(frozen=True)
class Milestones:
    """What samples look like after a number of training steps, from observed runs.

    Attributes:
        blobs, brains, folds: steps after which they appear.
        early, seen, late: descriptions of blobs, brains and folds.
    """

    blobs: int
    brains: int
    early: str
    seen: str
    folds: int | None = None
    late: str = ""

    def __call__(self, steps: int) -> str:
        if self.folds is not None and steps >= self.folds:
            return self.late
        if steps >= self.brains:
            return self.seen
        return self.early if steps >= self.blobs else "noise, not brains"


SLICES = Milestones(BLOBS, BRAINS, "grainy blobs of the size of heads, not brains",
                "brains seen from three sides, grainy inside", FOLDS,
                "brains seen from three sides, with cortex, ventricles and cerebellum")  # fmt: skip
# Volumes: noise after 45 steps, brains after 500.
VOLUMES = Milestones(500, 500, "", "brains in the round, cut by three planes each, grainy inside")  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """Seconds per step on this machine at present."""

    training_step: float  # one step of training, for one batch
    drawing_step: float  # one step of the sampler for one block of images


@dataclass(frozen=True)
class Drawing:
    """A number of images and the DDIM steps for each; `batch` images are drawn together."""

    images: int
    steps: int

    @property
    def batch(self) -> int:
        return min(self.images, BLOCK)

    def seconds(self, speed: Speed) -> float:
        batches = math.ceil(self.images / self.batch)
        return batches * self.steps * speed.drawing_step * self.batch / BLOCK


@dataclass(frozen=True)
class Plan:
    """A division of the budget.

    Args:
        steps_done: steps of a run that is continued.
        steps: steps that this run will take, about.
        training_seconds: time for these steps.
    """

    steps_done: int
    steps: int
    training_seconds: float
    drawing: Drawing
    speed: Speed
    budget: "Budget"
    most_images: int
    milestones: Milestones = SLICES

    def __str__(self) -> str:
        drawn = f"{self.drawing.images} images of {self.drawing.steps} DDIM steps"
        start = f", on from step {self.steps_done}" if self.steps_done else ""
        steps = f"about {self.steps} steps of {self.speed.training_step:.2f} s{start}"
        lines = [
            f"plan: {as_minutes(self.budget.seconds)} in all, {as_minutes(self.budget.spent())} of them gone",
            f"  train  {as_minutes(self.training_seconds)}, {steps}",
            f"  draw   {as_minutes(self.drawing.seconds(self.speed))}, {drawn}",
        ]
        if self.seconds() > self.budget.seconds + 1:
            lines.append(
                f"This machine, as busy as it is now, does not keep to the {as_minutes(self.budget.seconds)}: the "
                f"command will take about {as_minutes(self.seconds())}, as less than this cannot be trained and drawn."
            )
        if self.steps_done + self.steps < self.milestones.brains:
            lines.append(
                "This machine, as busy as it is now, does not reach brains in that time: they take about "
                f"{self.milestones.brains} steps, some {self.minutes_for_brains()} minutes here. The picture will show "
                f"{self.milestones(self.steps_done + self.steps)}."
            )
        return "\n".join(lines)

    def seconds(self) -> float:
        """Seconds of the whole command: the budget, or more if even the minimum of whole steps does not fit."""
        training = max(self.training_seconds, self.speed.training_step) if self.training_seconds else 0.0
        finishing = FINISHING_SHARE * self.budget.seconds
        return self.budget.spent() + training + self.drawing.seconds(self.speed) + finishing

    def minutes_for_brains(self) -> int:
        """Minutes the whole command needs at this speed to reach brains."""
        spent, minutes = self.budget.spent(), 1
        needed = (self.milestones.brains - self.steps_done) * self.speed.training_step
        while _divide(60 * minutes, spent, self.speed, self.most_images)[0] < needed:
            minutes += 1
        return minutes


class Budget:
    """A time budget, counted from the start of the command.

    Args:
        seconds: the whole budget.
        started: when the command started, by `clock`.
        clock: the time in seconds, from an arbitrary origin.
    """

    def __init__(self, seconds: float, started: float, clock: Callable[[], float]) -> None:
        if not 0 < seconds <= 60 * MAX_MINUTES:
            raise InputError(f"minutes is {seconds / 60:g}; it must be above 0 and at most {MAX_MINUTES:,}")
        self.seconds, self.started, self.clock = seconds, started, clock

    def spent(self) -> float:
        return self.clock() - self.started

    def left(self) -> float:
        return max(self.seconds - self.spent(), 0.0)


def make_plan(
    budget: Budget, speed: Speed, most_images: int, steps_done: int = 0, milestones: Milestones = SLICES
) -> Plan:
    """Plan the remaining time: as many images and sampler steps as fit in their share, and training in the rest."""
    training, drawing = _divide(budget.seconds, budget.spent(), speed, most_images)
    return Plan(
        steps_done, int(training / speed.training_step), training, drawing, speed, budget, most_images, milestones
    )


def _divide(seconds: float, spent: float, speed: Speed, most_images: int) -> tuple[float, Drawing]:
    """Seconds of training, and the drawing after it."""
    left = max(seconds - spent, 0.0)
    drawing = choose_drawing(DRAWING_SHARE * left, speed, most_images)
    return max(left - drawing.seconds(speed) - FINISHING_SHARE * seconds, 0.0), drawing


def choose_drawing(seconds: float, speed: Speed, most_images: int, most_steps: int = MAX_SAMPLER_STEPS) -> Drawing:
    """The best of a few drawings that fits in `seconds`; the smallest if none does."""
    counts = [most_images, *(n for n in (2 * BLOCK, BLOCK) if n < most_images)]
    choices = [Drawing(most_images, MAX_SAMPLER_STEPS), *(Drawing(n, 25) for n in counts), Drawing(counts[-1], 10)]
    choices.append(Drawing(min(MIN_IMAGES, most_images), 10))
    choices = [drawing for drawing in choices if drawing.steps <= most_steps]
    return next((drawing for drawing in choices if drawing.seconds(speed) <= seconds), choices[-1])


def as_minutes(seconds: float) -> str:
    """65.2 -> "1:05"."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
