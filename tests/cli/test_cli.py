"""The commands as a user types them: in a process of their own, on real files."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
import yaml
from nibabel.testing import data_path
from PIL import Image

from vmddpm.cli import COMMANDS, PRESETS, build_parser, main
from vmddpm.cli.prepare import DATASETS
from vmddpm.cli.presets import with_preset_files
from vmddpm.data import DataConfig, SliceDataset
from vmddpm.data.layouts import OPTIONS
from vmddpm.demo import demo_config, mni152_slices
from vmddpm.training import RunConfig, RunFolder

SMALL = """
model: {base_channels: 8, channel_multipliers: [1, 2], sampling: [2, 2], norm_groups: 4, d_state: 2}
diffusion: {timesteps: 20}
data: {size: 16, min_foreground: 0.05}
training: {steps: 4, batch_size: 2, log_every: 1, checkpoint_every: 2, sample_every: 0, sample_steps: 2, device: cpu}
"""


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """A folder with a real 4-D brain and a configuration for it; caches stay in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "scans").mkdir()
    shutil.copy(data_path / "example4d.nii.gz", tmp_path / "scans")
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "vmddpm.cli", *map(str, arguments)], capture_output=True, text=True)


def test_train_sample_and_train_on(scans):
    train = ["train", "--config", scans / "small.yaml", "--data.root", scans / "scans", "--run", scans / "run"]
    done = run(*train)
    assert done.returncode == 0, done.stderr
    assert "images from" in done.stdout
    assert "loss=" in done.stderr
    assert "images_per_s=" in done.stderr
    config = RunFolder(scans / "run").load_config()
    assert config.data.root == str(scans / "scans")
    assert config.training.steps == 4

    done = run(*train, "--training.steps", 6)
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in RunFolder(scans / "run").metrics()] == [1, 2, 3, 4, 5, 6]

    sample = ["sample", "--run", scans / "run", "--num", 3, "--sampler", "ddim", "--steps", 4, "--batch", 2]
    for out in ("a", "b"):
        done = run(*sample, "--out", scans / out)
        assert done.returncode == 0, done.stderr
    for name in ("000000.png", "000001.png", "000002.png", "grid.png"):
        assert (scans / "a" / name).read_bytes() == (scans / "b" / name).read_bytes()
    assert Image.open(scans / "a" / "000000.png").size == (16, 16)


def call(capsys, *arguments):
    """In this process; returns the exit code and stderr."""
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err


def test_a_training_of_days_on_a_cpu_is_refused_without_a_configuration_and_announced_with_one(scans, capsys):
    long = ["--training.steps", 10**12, "--data.root", scans / "nowhere", "--run", scans / "run"]
    small = ["--model.base_channels", 8, "--model.norm_groups", 4, "--training.device", "cpu"]
    code, error = call(capsys, "train", *small, *long)
    assert code == 1
    assert re.search(r"about [\d,]+ days on this CPU for 1,000,000,000,000 steps; take --config demo", error)
    assert main([str(word) for word in ["train", "--config", scans / "small.yaml", *long]]) == 1  # nowhere
    told = capsys.readouterr()
    assert re.search(r"vmddpm: .* parameters.*\nwarning: about [\d,]+ days on this CPU for", told.out)
    assert "no such file or folder" in told.err


def test_errors_are_one_line_with_the_way_out(scans, capsys):
    train = ["train", "--config", scans / "small.yaml"]
    (scans / "empty").mkdir()
    code, error = call(capsys, *train, "--data.root", scans / "empty", "--run", scans / "run")
    assert code == 1
    assert str(scans / "empty") in error
    assert "Traceback" not in error

    (scans / "scans" / "fake.dcm").write_text("not an image")
    code, error = call(capsys, *train, "--data.root", scans / "scans", "--run", scans / "run")
    assert code == 1
    assert "fake.dcm" in error
    assert "on_error" in error

    code, error = call(capsys, *train, "--data.root", scans / "scans", "--run", scans, "--data.on_error", "skip")
    assert code == 1
    assert "holds no run" in error

    code, error = call(capsys, *train, "--data.root", scans / "scans", "--run", scans / "run", "--data.size", "18")
    assert code == 1
    assert "multiple of 4" in error

    for device in ("cuda:99", "gpu"):
        code, error = call(capsys, *train, "--data.root", scans / "scans", "--run", scans / "run", "--training.device",
                           device)  # fmt: skip
        assert code == 1
        assert f"device is '{device}', which torch cannot use here" in error
        assert "use cpu or auto" in error

    code, error = call(capsys, "sample", "--run", scans / "nowhere", "--out", scans / "out")
    assert code == 1
    assert "holds no run" in error
    assert not (scans / "run").exists()
    assert not (scans / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["train", "--run", "r", "--model.base_chanels", "8"], ["train", "--run", "r", "--training.steps", "many"],
     ["train"], ["paint"], []],
)  # fmt: skip
def test_a_misspelt_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def commands(parser, *words):
    """(words, parser) of a command, of its sub-commands, of theirs."""
    yield words, parser
    for name, inner in parser._subcommands_action.choices.items() if parser._subcommands_action else ():
        yield from commands(inner, *words, name)


def test_every_help_has_examples_that_parse():
    parser, _ = build_parser()
    seen = list(commands(parser, "vmddpm"))
    assert len(seen) > len(COMMANDS) + len(DATASETS)
    for words, inner in seen:
        examples = re.findall(r"^  (?:torchrun .* -- )?(vmddpm.*)", inner.format_help(), re.MULTILINE)
        assert any(shlex.split(line)[: len(words)] == list(words) for line in examples), words
        for line in examples:
            with pytest.raises(SystemExit, match=r"^0$") if "--print_config" in line else nullcontext():
                parser.parse_args(with_preset_files(shlex.split(line)[1:]))


def test_help_does_not_wait_for_what_only_runs_need():
    program = (
        "import sys; from vmddpm.cli import build_parser; build_parser()[0].format_help(); "
        "print([name for name in ('diffusers', 'torch._dynamo', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_help_quotes_the_paper(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "connect two State Space Layers (SSLayers) in series" in text


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"torch        {version('torch')}" in text
    assert "cpu        on" in text
    assert "reference  on" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_whole_configurations(preset, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", preset, "--print_config"])
    plain = yaml.safe_load(capsys.readouterr().out)
    del plain["run"]
    assert set(plain) == {"model", "diffusion", "data", "training", "system", "unet", "gan"}
    if preset.startswith("paper"):
        assert plain["model"]["base_channels"] == 96
        assert plain["model"]["sampling"] == [4, 2, 2, 2]
        assert plain["data"]["size"] == 128
        assert plain["training"]["batch_size"] == 16
        assert plain["training"]["learning_rate"] == 1e-4
        assert plain["diffusion"]["prediction_type"] == "epsilon"
        assert plain["data"]["limit"] == (34999 if preset == "paper-chestxray" else None)


def test_paper_presets_choose_the_right_files(tmp_path):
    """Each preset on a small tree in the data set's own layout."""
    volume = nib.load(data_path / "example4d.nii.gz")
    frame = volume.slicer[..., 0]
    acdc = tmp_path / "acdc" / "patient001"
    brats = tmp_path / "brats" / "HGG" / "Brats18_A"
    chest = tmp_path / "chest" / "images_001" / "images"
    for folder in (acdc, brats, chest):
        folder.mkdir(parents=True)
    nib.save(volume, acdc / "patient001_4d.nii.gz")
    for name in ("frame01", "frame01_gt"):
        nib.save(frame, acdc / f"patient001_{name}.nii.gz")
    (acdc / "Info.cfg").write_text("ED: 1\nES: 12\n")
    for name in ("flair", "t1", "seg"):
        nib.save(frame, brats / f"Brats18_A_{name}.nii.gz")
    for i in range(3):
        Image.fromarray(np.full((20, 20), 90 * i + 30, np.uint8)).save(chest / f"0000000{i}_000.png")
    expected = {"acdc": ("frame01.nii.gz", 24), "brats2018": ("flair.nii.gz", None), "chestxray": ("000.png", 3)}
    for name, (ending, count) in expected.items():
        preset = yaml.safe_load((files("vmddpm.presets") / f"paper-{name}.yaml").read_text())
        root = {"acdc": acdc.parent, "brats2018": brats.parents[1], "chestxray": chest.parents[1]}[name]
        options = {**preset["data"], "root": str(root), "cache_dir": str(tmp_path / "cache")}
        dataset = SliceDataset(DataConfig(**options))
        assert {os.path.basename(s.path).split("_")[-1] for s in dataset.slices} == {ending}
        assert count is None or len(dataset) == count


@pytest.mark.parametrize(("name", "preset"), [("acdc", "acdc"), ("brats", "brats2018"), ("chestxray", "chestxray")])
def test_prepare_and_train_choose_the_same_slices(name, preset):
    preset = yaml.safe_load((files("vmddpm.presets") / f"paper-{preset}.yaml").read_text())
    assert OPTIONS[name].items() <= preset["data"].items()


@pytest.mark.parametrize(
    ("module", "cure", "arguments"),
    [("jsonargparse", 'pip install ".[train]"', ["info"]), ("fcntl", "Linux and macOS", ["info"]),
     ("nilearn", 'pip install ".[demo]"', ["demo"]),
     ("nilearn", 'pip install ".[demo]"', ["table1", "--out", "t"]),
     ("scipy", 'pip install ".[study]"', ["study", "report", "--counts", "1", "1", "1", "1"]),
     ("starlette", 'pip install ".[study]"', ["study", "serve", "study"])],
)  # fmt: skip
def test_a_missing_module_is_named_with_its_cure(module, cure, arguments, tmp_path):
    program = f"import sys; sys.modules[{module!r}] = None; from vmddpm.cli import main; sys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(rf"{module}\S* is missing", done.stderr)
    assert cure in done.stderr
    assert not list(tmp_path.iterdir())


def test_demo_configuration_and_slices():
    config = demo_config(2.5)
    assert isinstance(config, RunConfig)
    assert config.training.minutes == 2.5
    dataset = mni152_slices(config.data)
    assert len(dataset) >= 64
    assert {s.axis for s in dataset.slices} == {"axial", "coronal", "sagittal"}
    assert dataset[0].shape == (1, 64, 64)


@pytest.mark.slow
def test_demo_in_a_minute_and_another(tmp_path):
    for steps in (0, 1):
        done = run("demo", "--minutes", 1, "--out", tmp_path / "demo")
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "demo" / "demo.json").read_text())
        assert result["steps"] > steps
        assert f"on from step {steps}" in done.stdout or not steps
        steps = result["steps"]
        assert "plan: 1:00 in all" in done.stdout
        assert f"\n{steps} steps, " in done.stdout
        assert Image.open(tmp_path / "demo" / "demo.png").size[0] > 800
