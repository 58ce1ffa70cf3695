"""Runs with conditions: classes in training, checks and sampling, and condition images."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import SHAPES, write_shapes
from test_training_run import MODEL

from vmddpm.cli import main
from vmddpm.data import DataConfig, DataError, SliceDataset
from vmddpm.data.conditioned import ConditionedImages, conditioned
from vmddpm.data.conditions import ConditionConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.errors import InputError
from vmddpm.generate import generate
from vmddpm.model import ModelConfig
from vmddpm.samples import balance, check_drawn
from vmddpm.training import RunConfig, RunError, RunFolder, TrainingConfig, TrainingError, train
from vmddpm.training.batches import conditions_at, images_at, inputs_at
from vmddpm.training.conditions import with_conditions

OPTIONS = {"sampler": "ddim", "steps": 4, "batch_size": 4, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    root = write_shapes(folder / "shapes", 4)
    return DataConfig(str(root), size=8, min_foreground=0, cache_dir=str(folder / "cache"))


def config(data, condition, **training):
    options = {"batch_size": 3, "learning_rate": 1e-3, "steps": 4, "log_every": 9, "checkpoint_every": 2,
               "sample_every": 0, "sample_count": 5, "sample_steps": 2, "device": "cpu", **training}  # fmt: skip
    return RunConfig(ModelConfig(**MODEL), DiffusionConfig(timesteps=20), data, TrainingConfig(**options),
                     condition=condition)  # fmt: skip


def trained(data, condition, path, **training):
    images = conditioned(data, condition)
    run = with_conditions(config(data, condition, **training), images.classes)
    train(run, images, RunFolder(path), progress=False)
    return RunFolder(path)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return trained(data, ConditionConfig(labels="folder"), tmp_path_factory.mktemp("conditioned") / "run",
                   sample_every=2)  # fmt: skip


@pytest.fixture(scope="module")
def masks(data, tmp_path_factory):
    """Masks of the bright parts of images, under the same names."""
    root = tmp_path_factory.mktemp("masks")
    for info in SliceDataset(data).slices:
        kind, name = info.path.split("/")[-2:]
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray((np.asarray(Image.open(info.path)) > 100).astype(np.uint8) * 255).save(root / kind / name)
    return root


def test_weights_checkpoint_and_folder_carry_the_classes(run):
    assert run.load_config().model.classes == SHAPES
    assert run.load_model("ema").config.classes == SHAPES
    state = torch.load(next((run.path / "checkpoints").glob("step-00000004-*.pt")), weights_only=True)
    assert tuple(state["classes"]) == SHAPES
    assert run.class_counts() == dict.fromkeys(SHAPES, 4)
    assert (run.path / "samples" / "step-00000002.png").exists()


def test_a_run_with_classes_continues_bit_for_bit(data, tmp_path):
    condition = ConditionConfig(labels="folder", dropout=0.4)
    trained(data, condition, tmp_path / "parts", steps=2)
    trained(data, condition, tmp_path / "parts")
    trained(data, condition, tmp_path / "whole")
    a, b = (RunFolder(tmp_path / name).load_model("ema").state_dict() for name in ("parts", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_each_condition_belongs_to_its_image_and_flips_with_it(data, masks):
    condition = ConditionConfig(labels="folder", image=str(masks), dropout=0.0)
    images = conditioned(data, condition)
    run = with_conditions(config(data, condition), images.classes)
    flips = set()
    for step in range(6):
        pictures = images_at(images, step, run.training)
        for picture, row, mask in zip(pictures, *conditions_at(images, step, run)):
            ways = [(i, flip) for i in range(len(images)) for flip in (False, True)
                    if torch.equal(images[i].flip(-1) if flip else images[i], picture)]  # fmt: skip
            (place, flip), flips = ways[0], flips | {ways[0][1]}
            kind, name = images.slices[place].path.split("/")[-2:]
            assert row.tolist() == [float(other == kind) for other in SHAPES]
            expected = SliceDataset(replace(data, root=str(masks / kind / name)))[0]
            assert torch.equal(mask, expected.flip(-1) if flip else expected)
    assert flips == {False, True}


def test_dropout_leaves_out_its_share_of_conditions_and_nothing_else(data, masks):
    with_all, without = (
        ConditionConfig(labels="folder", image=str(masks), dropout=share) for share in (0.0, 0.3)
    )
    images = conditioned(data, with_all)
    runs = [with_conditions(config(data, c, batch_size=500), images.classes) for c in (with_all, without)]
    whole, dropped = (inputs_at(images, 1, run) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], dropped[:3]))
    left_out = dropped[3].sum(1) == 0
    assert 110 < left_out.sum() < 190  # 150 are expected, with a deviation of 10
    for a, b in zip(whole[3:], dropped[3:]):
        assert torch.equal(b[~left_out], a[~left_out])
        assert not b[left_out].any()


def drawn(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def test_guidance_0_draws_what_no_class_does_bit_for_bit(run, tmp_path):
    for name, options in {"a": {"class_name": "disc"}, "b": {"class_name": "cross"}, "c": {}}.items():
        generate(run.path, tmp_path / name, 4, guidance=0.0, **options, **OPTIONS)
        assert not (tmp_path / name / "labels.csv").exists()
    assert all(np.array_equal(a, b) and np.array_equal(a, c)
               for a, b, c in zip(*(drawn(tmp_path / name) for name in "abc")))  # fmt: skip


def test_samples_of_a_class_and_of_each_in_turn(run, tmp_path):
    generate(run.path, tmp_path / "turn", 6, file_format="npy", **OPTIONS)
    generate(run.path, tmp_path / "disc", 5, class_name="disc", guidance=2.0, **OPTIONS)
    with open(tmp_path / "turn" / "labels.csv", encoding="utf-8") as file:
        assert list(csv.reader(file))[1:] == [[f"{i:06d}", SHAPES[i % 4]] for i in range(6)]
    assert balance(tmp_path / "turn") == [(name, "4", str(2 - (i > 1))) for i, name in enumerate(SHAPES)]
    assert balance(tmp_path / "disc") == [(name, "4", "5" if name == "disc" else "0") for name in SHAPES]
    labelled = conditioned(
        DataConfig(str(tmp_path / "disc"), pattern="0*", size=8, min_foreground=0, cache_dir=str(tmp_path / "cache")),
        ConditionConfig(labels="csv", table=str(tmp_path / "turn" / "labels.csv")),
    )  # a table of samples is one that training reads
    assert labelled.classes == SHAPES
    with pytest.raises(RunError, match="class was 'disc' and is now 'cross'"):
        generate(run.path, tmp_path / "disc", 5, class_name="cross", guidance=2.0, **OPTIONS)


def test_masks_are_learned_and_drawn_to(data, masks, tmp_path):
    folder = trained(data, ConditionConfig(image=str(masks)), tmp_path / "run")
    assert folder.load_model("ema").config.condition_channels == 1
    for name, images in {"a": masks / "disc", "b": masks / "cross"}.items():
        generate(folder.path, tmp_path / name, 3, condition_images=str(images), **OPTIONS)
    assert not any(np.array_equal(a, b) for a, b in zip(drawn(tmp_path / "a"), drawn(tmp_path / "b")))
    with pytest.raises(InputError, match="with condition images; give a folder of them with condition-images"):
        generate(folder.path, tmp_path / "c", 3, **OPTIONS)
    with pytest.raises(RunError, match="condition_images_sha256 was"):
        generate(folder.path, tmp_path / "a", 3, condition_images=str(masks / "cross"), **OPTIONS)


def test_what_cannot_be_drawn(run, masks, data, tmp_path):
    for options, words in [
        ({"class_name": "ring"},
         "class is 'ring', which the run does not have; its classes are 'cross', 'disc', 'square'"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"condition_images": str(masks)}, "trained without condition images"),
    ]:
        with pytest.raises(InputError, match=words):
            generate(run.path, tmp_path / "out", 2, **options, **OPTIONS)
    sure = trained(data, ConditionConfig(labels="folder", dropout=0.0), tmp_path / "sure", steps=1)
    with pytest.raises(InputError, match=r"guidance is 2, but .* has condition\.dropout 0"):
        generate(sure.path, tmp_path / "out", 2, guidance=2.0, **OPTIONS)
    train(config(data, ConditionConfig(), steps=1), SliceDataset(data), RunFolder(tmp_path / "plain"), progress=False)
    for options in ({"class_name": "disc"}, {"guidance": 2.0}):
        with pytest.raises(InputError, match="was trained without a condition; leave class"):
            generate(tmp_path / "plain", tmp_path / "out", 2, **options, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_classes_that_are_not_those_of_the_weights_are_refused(run, data, tmp_path):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    text = copy.config_path.read_text()
    copy.config_path.write_text(text.replace("- cross\n  - disc", "- disc\n  - cross"))
    with pytest.raises(RunError, match=r"with the classes 'cross', 'disc', .* names 'disc', 'cross'"):
        generate(copy.path, tmp_path / "out", 2, class_name="disc", **OPTIONS)
    generate(run.path, tmp_path / "drawn", 2, **OPTIONS)
    with pytest.raises(RunError, match=r"with the classes 'cross', 'disc', .* names 'disc', 'cross'"):
        check_drawn(tmp_path / "drawn", copy)
    images = conditioned(data, ConditionConfig(labels="folder"))
    labels = images.labels.numpy()
    for values, error, words in [
        (labels[:, [1, 0, 2, 3]], TrainingError, "or its condition does"),
        (labels, RunError, r"checkpoint of .* was trained with the classes 'cross'"),
    ]:
        with pytest.raises(error, match=words):
            train(copy.load_config(), ConditionedImages(images.images, copy.classes(), values), copy, progress=False)


def test_images_and_model_must_have_the_same_conditions(data, masks, tmp_path):
    labels = ConditionConfig(labels="folder")
    images, run = conditioned(data, labels), config(data, labels)
    with pytest.raises(TrainingError, match=r"have the classes 'cross', .*, model\.classes is \(none\)"):
        train(run, images, RunFolder(tmp_path / "run"), progress=False)
    with pytest.raises(TrainingError, match=r"have the classes \(none\), model\.classes is 'cross'"):
        train(with_conditions(run, SHAPES), SliceDataset(data), RunFolder(tmp_path / "run"), progress=False)
    other = replace(run, model=replace(run.model, classes=SHAPES, condition_channels=3))
    with pytest.raises(TrainingError, match=r"condition_channels is 3, but the condition images have 0"):
        train(other, images, RunFolder(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="system is 'dcgan', which takes no condition"):
        replace(run, system="dcgan")


def test_the_command_line(data, tmp_path, capsys):
    root = shutil.copytree(data.root, tmp_path / "shapes")
    small = [f"--model.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in MODEL.items()]
    options = {"data.root": root, "data.size": 8, "data.min_foreground": 0, "data.cache_dir": tmp_path / "cache",
               "training.batch_size": 2, "training.sample_every": 0, "training.warmup_steps": 0,
               "training.device": "cpu", "condition.labels": "folder"}  # fmt: skip
    command = ["train", "--config", "demo", "--run", str(tmp_path / "run"), *small,
               *(f"--{name}={value}" for name, value in options.items())]  # fmt: skip
    assert main([*command, "--training.steps", "1"]) == 0
    assert "classes: cross (4 images), disc (4 images), square (4 images), triangle (4 i" in capsys.readouterr().out
    assert main([*command, "--training.steps", "2"]) == 0  # the run's classes need not be named
    sample = ["sample", "--run", str(tmp_path / "run"), "--images", "3", "--sampler", "ddim", "--steps", "2"]
    capsys.readouterr()
    assert main([*sample, "--out", str(tmp_path / "out"), "--class", "disc", "--guidance", "1.5"]) == 0
    assert "disc                    4        3" in capsys.readouterr().out
    assert main([*sample, "--out", str(tmp_path / "out"), "--class", "ring"]) == 1
    (root / "disc").rename(root / "ring")
    assert main([*command, "--training.steps", "3"]) == 1
    assert "has the class 'ring' by its folder, which is not one of 'cross', 'disc'" in capsys.readouterr().err


def test_evaluate_per_class(run, tmp_path, capsys):
    generate(run.path, tmp_path / "samples", 16, **OPTIONS)
    command = ["evaluate", "--run", str(run.path), "--extractor.path=random", "--metrics.device", "cpu", "--per-class",
               "--metrics.kid_subsets", "2", "--classifier-steps", "1", "--held-out", run.load_config().data.root,
               "--samples", str(tmp_path / "samples"), "--out", str(tmp_path / "result")]  # fmt: skip
    assert main(command) == 0
    found = json.loads((tmp_path / "result" / "per_class.json").read_text())
    assert [(values["n_real"], values["n_synthetic"]) for values in found["classes"].values()] == [(4, 4)] * 4
    assert len(found["classifiers"]) == 4
    assert (tmp_path / "result" / "classes" / "001-disc" / "closest.png").exists()
    assert "trained on samples, tested on held_out: " in capsys.readouterr().out
    labels = tmp_path / "samples" / "labels.csv"
    text = labels.read_text()
    for other, words in [(text.replace("disc", "ring"), "class 'ring', which the run does not have"),
                         (text.replace("000003", "000005"), "has no row for each of the 16"),
                         ("file,label\n1,2,3\n", "cannot be read"), (None, "has no labels.csv")]:  # fmt: skip
        labels.unlink() if other is None else labels.write_text(other)
        assert main(command) == 1
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": "csv"}, "table is None"),
        ({"labels": "dicom", "tag": "BodyPart"}, "tag is 'BodyPart'; it must be the keyword"),
        ({"labels": "folder", "table": "a.csv"}, "table is 'a.csv'; it must be null unless labels is csv or chestxray"),
        ({"labels": "folder", "pattern": "a(b"}, "pattern is"),
        ({"labels": "folder", "pattern": "ab"}, "pattern is"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"image": "x", "image_window": (0.0, 0.0)}, "image_window is"),
        ({"labels": "name"}, "labels is 'name'"),
    ],
)
def test_invalid_conditions(options, words):
    with pytest.raises(DataError, match=words):
        ConditionConfig(**options)
