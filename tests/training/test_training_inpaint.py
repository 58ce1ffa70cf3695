"""`vmddpm inpaint`: files from a run, images and masks."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from test_training_run import config

from vmddpm.cli import main
from vmddpm.data import DataError
from vmddpm.errors import InputError
from vmddpm.inpaint import inpaint_images
from vmddpm.training import RunError, RunFolder, train

OPTIONS = {"steps": 4, "jump": 2, "resamplings": 2, "batch_size": 2, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("inpaint") / "run")
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    train(config(steps=1, sample_every=0), images, folder, progress=False)
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Four images with masks of 0 and 1; the second mask is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        mask = np.zeros((8, 8), np.uint8)
        mask[2:5, i : i + 3] = i != 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    return str(tmp_path / "images"), str(tmp_path / "masks")


def pixels(path):
    return np.asarray(Image.open(path))


def test_only_the_region_changes(run, folders, tmp_path):
    images, masks = folders
    assert inpaint_images(run.path, images, masks, tmp_path / "out", **OPTIONS) == 3
    with open(tmp_path / "out" / "sources.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"].removeprefix(f"{images}/") for row in rows] == ["0.png", "2.png", "3.png"]
    for row in rows:
        name = row["source"].rsplit("/", 1)[1]
        before, after, mask = pixels(row["source"]), pixels(tmp_path / "out" / row["file"]), pixels(f"{masks}/{name}")
        assert np.array_equal(before[mask == 0], after[mask == 0])
        assert (before[mask == 1] != after[mask == 1]).mean() > 0.8


def test_an_interrupted_call_is_continued_and_another_refused(run, folders, tmp_path):
    for name in ("a", "b"):
        inpaint_images(run.path, *folders, tmp_path / name, **OPTIONS)
    (tmp_path / "b" / "000002.png").unlink()
    inpaint_images(run.path, *folders, tmp_path / "b", **OPTIONS)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b
    with pytest.raises(RunError, match="resamplings was 2 and is now 3"):
        inpaint_images(run.path, *folders, tmp_path / "a", **{**OPTIONS, "resamplings": 3})
    Image.fromarray(np.ones((8, 8), np.uint8)).save(f"{folders[1]}/1.png")
    with pytest.raises(RunError, match="masks_sha256 was"):
        inpaint_images(run.path, *folders, tmp_path / "a", **OPTIONS)


def test_what_cannot_be_drawn(run, folders, tmp_path):
    images, masks = folders
    for options, words in [
        ({"sampler": "dpm-solver"}, "cannot go back"), ({"jump": 4}, "jump is 4"), ({"guidance": 2.0}, "leave class"),
        ({"class_name": "ill"}, "leave class"), ({"weights": "new"}, "weights is 'new'"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            inpaint_images(run.path, images, masks, tmp_path / "out", **{**OPTIONS, **options})
    Image.fromarray(np.ones((8, 9), np.uint8)).save(f"{masks}/2.png")
    with pytest.raises(DataError, match=r"masks/2\.png is 8 x 9 pixels, but its image, .*2\.png, is 8 x 8"):
        inpaint_images(run.path, images, masks, tmp_path / "out", **OPTIONS)
    for i in range(4):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(f"{masks}/{i}.png")
    with pytest.raises(DataError, match="all 4 masks are empty"):
        inpaint_images(run.path, images, masks, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_command_line(run, folders, tmp_path, capsys):
    images, masks = folders
    command = ["inpaint", "--run", str(run.path), "--real", images, "--masks", masks, "--out", str(tmp_path / "out"),
               "--steps", "2", "--jump", "1", "--resamplings", "1", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    assert "3 images in" in capsys.readouterr().out
