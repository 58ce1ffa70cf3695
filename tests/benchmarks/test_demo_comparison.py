"""The comparison of networks in the demo's minutes, and the README's picture, with small networks and a fake clock."""

import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import demo_comparison, demo_picture
from benchmarks.demo_comparison import NAMES, SHARES, Comparison, configurations, markdown, parameters, verdict
from vmddpm.data import DataConfig
from vmddpm.demo import demo_config, draw_images, halves, mni152_slices
from vmddpm.errors import InputError
from vmddpm.evaluation import figures_of_merit
from vmddpm.model import ModelConfig
from vmddpm.model.unet import UNetConfig
from vmddpm.training import RunFolder, train

SMALL = ModelConfig(base_channels=8, channel_multipliers=(1, 2), sampling=(4, 2), norm_groups=4, d_state=2,
                    layers_per_stage=1)  # fmt: skip


def small(minutes):
    ours = demo_config(minutes)
    ours = replace(ours, model=SMALL, data=replace(ours.data, size=32), diffusion=replace(ours.diffusion, timesteps=50))
    ours = replace(ours, training=replace(ours.training, batch_size=2, sample_every=0))
    unet = UNetConfig(widths=(4, 4), attention=(False, False), layers_per_stage=1, norm_groups=4)
    return {"regenerated": ours, "ordered": replace(ours, model=replace(SMALL, regeneration=False)),
            "unet": replace(ours, system="unet", unet=unet)}  # fmt: skip


@pytest.fixture(autouse=True)
def two_steps_of_the_sampler(monkeypatch):
    monkeypatch.setattr("vmddpm.demo.MAX_SAMPLER_STEPS", 2)


@pytest.fixture(scope="module")
def slices():
    return mni152_slices(DataConfig(size=32, axes=("axial",), min_foreground=0.2))


@pytest.fixture
def compare(monkeypatch, tmp_path, slices):
    monkeypatch.setattr(demo_comparison, "configurations", small)

    def compare(minutes=8.0):
        """Each reading of the clock is a minute after the last."""
        comparison = Comparison(tmp_path / "out", minutes, 4, slices)
        ticks = itertools.count()
        return comparison, lambda: 60.0 * next(ticks)

    return compare


def test_a_comparison_is_made_and_goes_on_where_it_was_stopped(compare, monkeypatch, tmp_path, capsys):
    comparison, clock = compare()
    comparison.run("regenerated", 0, clock)
    with monkeypatch.context() as patch:
        patch.setattr(demo_comparison, "draw_images", lambda *_: sys.exit("stopped"))
        with pytest.raises(SystemExit):
            comparison.run("ordered", 0, clock)
    first = json.loads(comparison.path.read_text())["runs"]

    comparison, clock = compare()
    runs = [("regenerated", 0), ("ordered", 0), ("unet", 0), ("unet", 1)]
    for model, seed in runs:
        comparison.run(model, seed, clock)
    assert "VM-DDPM, seed 0: is there" in capsys.readouterr().out
    data = json.loads(comparison.path.read_text())
    assert data["runs"][:1] == first
    assert [(run["model"], run["seed"]) for run in data["runs"]] == runs
    for run in data["runs"]:
        assert [point["minutes"] for point in run["points"]] == [8 * share for share in SHARES]
        assert [point["steps"] for point in run["points"]] == [1, 1, 2, 4, 6, 8]  # a minute each
    table = (tmp_path / "out" / "README.md").read_text()
    for name, model in zip(("VM-DDPM", "VM-DDPM, scans in order", "UNet"), small(1)):
        ends = [run["points"][-1]["spectrum"] for run in data["runs"] if run["model"] == model]
        size = f"{parameters(small(1)[model]) / 1e6:.2f} M"
        assert f"| {name} | {size} | {len(ends)} | 8 | {np.mean(ends):.3g} ({min(ends):.3g} to " in table
    assert np.asarray(Image.open(tmp_path / "out" / "curve.png")).std() > 10
    assert Image.open(tmp_path / "out" / "unet-1.png").size == (66, 66)  # 2 x 2 of 32 pixels, a margin of 2

    with pytest.raises(InputError, match="results of other minutes and configurations; give --out another folder"):
        compare(minutes=9.0)


def test_the_trained_networks_are_those_of_a_run(slices, tmp_path):
    """The last images come from the same averaged weights as `vmddpm train` gives after as many steps."""
    config = small(4)["regenerated"]
    ticks, seen = itertools.count(), []
    demo_comparison.train(
        config, slices, lambda minutes, step, learner: seen.append(draw_images(learner.ema, config, 4)),
        lambda: 60.0 * next(ticks),
    )
    # There the rate falls with the share of the minutes, here with that of the steps.
    options = replace(config.training, minutes=None, steps=4)
    model = train(replace(config, training=options), slices, RunFolder(tmp_path / "run"), progress=False)
    assert torch.equal(draw_images(model, config, 4), seen[-1])


def test_networks_are_of_equal_size():
    counts = {name: parameters(config) for name, config in configurations(10).items()}
    assert counts.keys() == NAMES.keys()
    assert counts["regenerated"] == counts["ordered"] == parameters(demo_config(10))
    assert all(0.9 < count / counts["regenerated"] < 1.1 for count in counts.values())


def result(**ends):
    """Results of runs that end with these spectra and with equal textures and structures."""
    runs = [
        {"model": model, "seed": seed, "date": "2026-01-01", "torch": "2", "threads": 2, "others": 0.3 * seed,
         "points": [{"minutes": 10, "steps": 7 + seed, "spectrum": value, "texture": 1.0, "structure": 2.0}]}
        for model, values in ends.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return {"minutes": 10, "images": 36, "runs": runs, "parameters": dict.fromkeys(ends, 3_000_000),
            "real": {"spectrum": 0.2, "texture": 0.01, "structure": 1.0}}  # fmt: skip


def test_who_won_is_said_only_where_every_run_did():
    clear = result(regenerated=[1.0, 1.5], ordered=[3.0, 2.0], unet=[4.0, 4.0])
    assert verdict(clear, "spectrum") == (
        "By spectrum, VM-DDPM is best in every run, 2 times ahead of VM-DDPM, scans in order."
    )
    unclear = result(regenerated=[1.0, 2.5], ordered=[3.0, 2.0], unet=[4.0, 4.0])
    assert verdict(unclear, "spectrum") == "By spectrum, VM-DDPM is best on average, but runs of others are as good."
    table = markdown(clear)
    assert "| UNet | 3.00 M | 2 | 7.5 | 4 (4 to 4) | 1 (1 to 1) | 2 (2 to 2) |" in table
    assert "| as many real slices | | | | 0.2 | 0.01 | 1 |" in table
    assert "busy machine**: other programs took up to 30 % of" in table
    assert "best in every run" not in markdown(result(unet=[4.0]))


def test_the_readmes_picture(slices, tmp_path, monkeypatch, capsys):
    config = small(None)["regenerated"]
    config = replace(config, training=replace(config.training, minutes=None, steps=2))
    train(config, slices, RunFolder(tmp_path / "run"), progress=False)
    monkeypatch.setattr(demo_picture, "mni152_slices", lambda _: slices)
    given = {}
    whole = demo_picture.save_comparison
    monkeypatch.setattr(demo_picture, "save_comparison", lambda *g: (given.update(zip("rspt", g)), whole(*g)))
    monkeypatch.setattr(sys, "argv", ["demo_picture", str(tmp_path / "run"), "--out", str(tmp_path / "docs/demo.png"),
                                      "--images", "9"])  # fmt: skip
    demo_picture.main()
    assert given["t"] == ("real (MNI152)", "synthetic (VM-DDPM after 2 steps; brains take about 200)")
    assert len(given["r"]) == len(given["s"]) == 9
    assert Image.open(tmp_path / "docs" / "demo.png").size[0] > 1200
    assert f"synthetic: {figures_of_merit(given['s'], halves(slices, 9)[1])}" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["demo_picture", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="2"):
        demo_picture.main()
    assert "holds no run" in capsys.readouterr().err
