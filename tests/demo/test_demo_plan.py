"""The demo's time budget, with a clock that only training and drawing advance."""

import math
import re
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch import nn

import vmddpm.demo as module
from vmddpm.cli import main
from vmddpm.cli.messages import shown
from vmddpm.demo import demo
from vmddpm.demo.plan import BLOBS, BRAINS, FOLDS, SLICES, Budget, Drawing, Speed, choose_drawing, make_plan
from vmddpm.errors import InputError
from vmddpm.evaluation import Merit, figures_of_merit

IMAGES = torch.rand(100, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
OUTLINE = r"(\d+:\d\d) in all, (\d+:\d\d) of them gone\n  train  (\d+:\d\d), about (\d+) steps of ([\d.]+) s(.*)\n" \
          r"  draw   (\d+:\d\d), (\d+) images of (\d+) DDIM steps"  # fmt: skip


class Machine:
    """A machine with given step times, multiplied by the slowdown from other programs in training and in drawing."""

    def __init__(self, speed, training=1.0, drawing=1.0, saving=0.0):
        self.now, self.speed, self.training, self.drawing, self.saving = 1000.0, speed, training, drawing, saving
        self.drawn = []

    def clock(self):
        return self.now

    def measure(self, config, dataset, clock, limit):
        self.now += 4 * (self.speed.training_step + self.speed.drawing_step)
        return self.speed

    def train(self, config, dataset, folder, *, progress, after_step):
        started, self.steps = self.now, 0
        while self.now - started < 60 * config.training.minutes:
            self.now += self.speed.training_step * self.training
            self.steps += 1
            after_step(self.steps, {"loss": 0.5})
        self.now += self.saving
        return nn.Identity()

    def sample(self, model, indices, shape, *, steps, batch_size, progress, **options):
        assert len(indices) <= batch_size
        self.drawn.append((indices, steps))
        for step in range(steps):
            self.now += self.speed.drawing_step * self.drawing * batch_size / 16
            progress(step + 1, steps)
        return IMAGES[: len(indices)]


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(machine, minutes, images=64, merit=lambda images, real: Merit(1.0, 2.0, 3.0)):
        for name in ("measure_speed", "train", "sample"):
            monkeypatch.setattr(module, name, getattr(machine, name.partition("_")[0]))
        monkeypatch.setattr(module, "mni152_slices", lambda config: IMAGES)
        monkeypatch.setattr(module, "figures_of_merit", merit)
        monkeypatch.setattr(module, "save_comparison", lambda *given: setattr(machine, "titles", given[3]))
        folder = tmp_path / f"{machine.speed.training_step:g}-{minutes}"
        started = machine.now - 5.0  # loading torch
        with shown():
            result = demo(folder, minutes=minutes, images=images, started=started, clock=machine.clock)
        return result, machine.now - started

    return run


SPEEDS = [Speed(a, a / d) for a in (0.03, 0.17, 0.8, 3.0) for d in (1.5, 4.0)]


@pytest.mark.parametrize("speed", SPEEDS, ids=str)
@pytest.mark.parametrize("minutes", [1.0, 6.0])
@pytest.mark.parametrize(("training", "drawing"), [(1, 1), (3, 3), (1, 3), (3, 1), (0.3, 0.3), (0.3, 1)])
def test_the_command_keeps_its_minutes_whatever_others_do(run, speed, minutes, training, drawing):
    """After planning, other programs may make the machine three times slower, or end."""
    if speed.training_step * 20 >= 60 * minutes:
        pytest.skip("no time for twenty steps")
    machine = Machine(speed, training, drawing, saving=0.02 * 60 * minutes)
    result, took = run(machine, minutes)
    assert 0.7 * 60 * minutes < took < 1.2 * 60 * minutes
    assert machine.steps == result["steps"] > 0
    indices = [i for block, _ in machine.drawn for i in block]
    assert indices == list(range(result["images"]))
    assert {steps for _, steps in machine.drawn} == {result["sampler_steps"]}


def test_a_plan_adds_up_and_is_kept(run, capsys):
    result, _ = run(Machine(Speed(0.4, 0.1)), minutes=5)
    total, gone, training, steps, step, on, drawing, images, sampler_steps = re.search(
        OUTLINE, capsys.readouterr().out
    ).groups()
    assert (total, gone, step, on) == ("5:00", "0:07", "0.40", "")  # 5 s and 4 times (0.4 + 0.1) s
    assert (images, sampler_steps, drawing) == ("64", "50", "0:20")  # 4 blocks of 50 steps
    assert training == "4:21"  # of 5:00 - 0:07 - 0:20, less 4 % of 5:00
    assert int(steps) == math.floor((300 - 7 - 20 - 12) / 0.4)
    assert abs(result["steps"] - int(steps)) <= 1
    assert (result["images"], result["sampler_steps"]) == (64, 50)


def test_figures_of_merit_are_stored_and_printed(run, capsys):
    """The fake model repeats the first 16 images: noise, like the fake data."""
    result, _ = run(Machine(Speed(0.4, 0.1)), minutes=5, merit=figures_of_merit)
    *_, copied, report = capsys.readouterr().out.splitlines()
    assert result["copies"] == 64
    assert copied.startswith("64 of the 64 are close to copies")
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    for name, images in (("synthetic", IMAGES[:16].repeat(4, 1, 1, 1)), ("real", IMAGES[order[:64]])):
        found = figures_of_merit(images, IMAGES[order[64:]])
        assert result[name] == asdict(found)
        assert str(found) in report
    assert report.startswith("distance from other real slices: spectrum ")


def test_fewer_images_where_the_machine_is_slower():
    found = [choose_drawing(40.0, Speed(1.0, step), 64) for step in (0.1, 0.3, 0.5, 1.0, 2.0, 10.0)]
    counts = [(drawing.images, drawing.steps) for drawing in found]
    assert counts == [(64, 50), (64, 25), (32, 25), (16, 25), (16, 10), (4, 10)]
    assert all(1000 % drawing.steps == 0 for drawing in found)  # DDIM requires it
    costs = [drawing.seconds(Speed(1.0, 1.0)) for drawing in found]
    assert all(a >= b for a, b in pairwise(costs))
    assert choose_drawing(0.0, Speed(1.0, 1.0), 5) == Drawing(4, 10)


def test_a_budget_that_is_too_short_is_reported_before_and_after(run, capsys):
    machine = Machine(Speed(2.0, 0.5))
    result, _ = run(machine, minutes=1)
    assert result["steps"] < BLOBS
    out = capsys.readouterr().out
    before, after = out.split(f"{result['steps']} steps, ")
    needed = int(re.search(rf"about {BRAINS} steps, some (\d+) minutes here", before)[1])
    assert "does not reach brains" in before
    assert "The picture will show noise, not brains" in before
    assert "noise, not brains, on the right of" in after
    assert f"goes on from step {result['steps']}" in after
    assert machine.titles[1] == f"synthetic (VM-DDPM after {result['steps']:,} steps; brains take about {BRAINS})"

    enough = Machine(Speed(2.0, 0.5))
    result, took = run(enough, minutes=needed)
    assert result["steps"] >= BRAINS
    assert took <= 60 * needed * 1.05
    out = capsys.readouterr().out
    assert "does not reach" not in out
    assert "brains seen from three sides, grainy inside, on the right of" in out
    assert enough.titles[1] == f"synthetic (VM-DDPM after {result['steps']:,} steps)"


def test_a_continued_run_counts_its_steps():
    budget = Budget(60.0, 0.0, lambda: 0.0)
    plan = make_plan(budget, Speed(1.0, 0.1), 64, steps_done=BRAINS - 10)
    assert "does not reach" not in str(plan)
    assert f"on from step {BRAINS - 10}" in str(plan)
    assert [SLICES(n).split()[0] for n in (0, BLOBS - 1, BLOBS, BRAINS - 1, BRAINS)] == [
        "noise,", "noise,", "grainy", "grainy", "brains"
    ]
    assert [SLICES(n).rpartition(", ")[2] for n in (BRAINS, FOLDS - 1, FOLDS)] == [
        "grainy inside", "grainy inside", "ventricles and cerebellum"
    ]  # fmt: skip


def test_a_plan_that_exceeds_its_budget_says_so():
    slow = make_plan(Budget(60.0, 0.0, lambda: 10.0), Speed(100.0, 30.0), 64)
    assert (slow.steps, slow.drawing) == (0, Drawing(4, 10))
    # 10 s gone, 10 steps for a quarter of a block at 30 s a block, 4 % of 60 s
    assert slow.seconds() == pytest.approx(10 + 10 * 30 / 4 + 2.4)
    assert "does not keep to the 1:00: the command will take about 1:27" in str(slow)
    one_step = make_plan(Budget(60.0, 0.0, lambda: 10.0), Speed(100.0, 0.1), 64)  # begun in time, and taken whole
    assert one_step.seconds() == pytest.approx(10 + 100 + 5 + 2.4)
    assert "will take about 1:57" in str(one_step)
    for speed in SPEEDS:
        kept = make_plan(Budget(360.0, 0.0, lambda: 10.0), speed, 64)
        assert kept.seconds() == pytest.approx(360)
        assert "does not keep" not in str(kept)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_invalid_minutes(tmp_path, minutes):
    with pytest.raises(InputError, match=r"minutes is .*; it must be above 0"):
        demo(tmp_path / "run", minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "mni152_slices", None)
    (tmp_path / "letter.txt").write_text("keep")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "is not empty and holds no run" in capsys.readouterr().err
