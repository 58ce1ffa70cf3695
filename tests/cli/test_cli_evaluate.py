"""`vmddpm prepare`, `train`, `sample` and `evaluate` in a row, with a GAN, on a store with a test split."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmddpm.cli import main
from vmddpm.data import DataConfig, held_out_images
from vmddpm.evaluation.extractor import random_convolutions

sys.path.append(str(Path(__file__).parents[1] / "data"))
import trees

SMALL = """
system: dcgan
gan: {latent_dim: 8, base_channels: 4}
data: {size: 16, min_foreground: 0.0}
training: {steps: 4, batch_size: 2, checkpoint_every: 4, sample_every: 0, device: cpu}
"""


@pytest.fixture
def run(tmp_path):
    """A run folder trained on the train split of a store, and 80 samples from it."""
    trees.acdc(tmp_path / "ACDC", 4)
    (tmp_path / "small.yaml").write_text(SMALL)
    store, samples = tmp_path / "store", tmp_path / "samples"
    for command in (
        ["prepare", "acdc", tmp_path / "ACDC", "--out", store, "--data.size", 16, "--test-share", 0.5],
        ["train", "--config", tmp_path / "small.yaml", "--data.root", store, "--run", tmp_path / "run"],
        ["sample", "--run", tmp_path / "run", "--images", 80, "--batch-size", 40, "--out", samples, "--format", "npy"],
    ):
        assert main([str(word) for word in command]) == 0
    return tmp_path


def test_evaluate(run, capsys, monkeypatch):
    torch.jit.script(random_convolutions()).save(str(run / "features.pt"))
    evaluate = ["evaluate", "--run", run / "run", "--samples", run / "samples", "--out", run / "out",
                "--extractor.size", 32, "--metrics.kid_subsets", 5]  # fmt: skip
    capsys.readouterr()
    assert main([str(w) for w in (*evaluate, "--extractor.path", run / "features.pt")]) == 0
    text = capsys.readouterr().out
    result = json.loads((run / "out" / "evaluation.json").read_text())
    held_out = held_out_images(DataConfig(root=str(run / "store"), size=16, min_foreground=0.0))
    assert result["n_synthetic"] == 80
    assert result["n_real"] + len(held_out) == 192
    assert result["memorisation"]["reference"] == "held-out real images"
    assert f"{result['value']:.4g}" in text
    assert "features of features.pt" in text
    assert np.asarray(Image.open(run / "out" / "closest.png")).std() > 10

    random = [*evaluate, "--extractor.path", "random"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "radiomics", None)
        patch.setattr("vmddpm.data.SliceDataset", None)  # images are not decoded
        assert main([str(w) for w in (*random, "--metrics.radiomics", 50)]) == 1
    assert 'pip install ".[radiomics]"' in capsys.readouterr().err
    assert main([str(w) for w in (*random, "--metrics.device", "cuda:99")]) == 1
    assert "use cpu or auto" in capsys.readouterr().err
    (run / "in_memory").mkdir()
    config = (run / "run" / "config.yaml").read_text()
    (run / "in_memory" / "config.yaml").write_text(config.replace(f"root: {run / 'store'}", "root: ''"))
    assert main([str(run / "in_memory") if w == run / "run" else str(w) for w in random]) == 1
    assert "folder of real images with --root" in capsys.readouterr().err

    assert main([str(w) for w in evaluate]) == 1
    assert "curl -LO" in capsys.readouterr().err
    evaluate[4] = run / "nowhere"
    assert main([str(w) for w in (*evaluate, "--extractor.path", "random")]) == 1
    assert "draw them with vmddpm sample" in capsys.readouterr().err


def test_training_images_that_are_others_now(run, capsys):
    """The store was moved, and a store with more patients took its place."""
    evaluate = ["evaluate", "--run", run / "run", "--samples", run / "samples", "--out", run / "out",
                "--extractor.path", "random", "--extractor.size", 32, "--metrics.kid_subsets", 2]  # fmt: skip
    warning = "does not hold the images that"
    (run / "store").rename(run / "elsewhere")
    assert main([str(w) for w in (*evaluate, "--root", run / "elsewhere")]) == 0
    assert warning not in capsys.readouterr().err
    prepare = ["prepare", "acdc", run / "ACDC", "--out", run / "store", "--data.size", 16, "--test-share", 0.1]
    assert main([str(w) for w in prepare]) == 0
    capsys.readouterr()
    assert main([str(w) for w in evaluate]) == 1
    error = capsys.readouterr().err
    assert warning in error
    assert "--root" in error
    assert main([str(w) for w in (*evaluate, "--root", run / "store")]) == 0  # deliberately other images
    assert warning in capsys.readouterr().err
    assert warning in json.loads((run / "out" / "evaluation.json").read_text())["warnings"][0]


def test_samples_of_another_run_are_refused_before_images_are_decoded(run, capsys):
    (run / "other").mkdir()
    for number in range(5):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(run / "other" / f"{number:06d}.png")
    (run / "store").rename(run / "elsewhere")  # any further read fails
    evaluate = ["evaluate", "--run", run / "run", "--samples", run / "other", "--out", run / "out",
                "--extractor.path", "random"]  # fmt: skip
    assert main([str(w) for w in evaluate]) == 1
    assert "channels and pixels (1, 8, 8), the training images have (1, 16, 16)" in capsys.readouterr().err


def test_held_out_images(run):
    """The test split of a store, if there is one; any other folder has none."""
    config = DataConfig(root=str(run / "store"), size=16, min_foreground=0.0)
    sides = {s.path.split("/")[0] for s in held_out_images(config).slices}
    assert 1 <= len(sides) <= 3
    assert held_out_images(DataConfig(root=str(run / "store"), size=16, split="all")) is None
    assert held_out_images(DataConfig(root=str(run / "ACDC"), size=16)) is None
    other = held_out_images(config, str(run / "store"))
    assert len(other) == 192
