"""The commands as a user types them, each in its own process, on real files."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import yaml
from nibabel.testing import data_path
from PIL import Image

from vmddpm.cli import COMMANDS, PRESETS, build_parser, main, parse
from vmddpm.cli.prepare import DATASETS
from vmddpm.data import DataConfig, SliceDataset
from vmddpm.data.layouts import OPTIONS
from vmddpm.demo import demo, demo_config, mni152_crops, mni152_slices
from vmddpm.errors import InputError
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
    assert "continues from step 4\n" in done.stdout
    assert [m["step"] for m in RunFolder(scans / "run").metrics()] == [1, 2, 3, 4, 5, 6]

    sample = ["sample", "--run", scans / "run", "--images", 3, "--sampler", "ddim", "--steps", 4, "--batch-size", 2]
    for out in ("a", "b"):
        done = run(*sample, "--out", scans / out)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"3 images written to {scans / out}\n"
    (scans / "b" / "000002.png").unlink()
    done = run(*sample, "--out", scans / "b")
    assert done.stdout == f"1 image written to {scans / 'b'}; the rest of the 3 already existed\n"
    for name in ("000000.png", "000001.png", "000002.png", "grid.png"):
        assert (scans / "a" / name).read_bytes() == (scans / "b" / name).read_bytes()
    assert Image.open(scans / "a" / "000000.png").size == (16, 16)


def call(capsys, *arguments):
    """Run a command in this process; returns the exit code and stderr."""
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err


def test_a_training_of_days_on_a_cpu_is_refused_without_a_configuration_and_announced_with_one(scans, capsys):
    long = ["--training.steps", 10**12, "--data.root", scans / "nowhere", "--run", scans / "run"]
    small = ["--model.base_channels", 8, "--model.norm_groups", 4, "--training.device", "cpu"]
    code, error = call(capsys, "train", *small, *long)
    assert code == 1
    assert re.search(r"about [\d,]+ days on this CPU for 1,000,000,000,000 steps; use --config demo", error)
    assert main([str(word) for word in ["train", "--config", scans / "small.yaml", *long]]) == 1  # nowhere
    captured = capsys.readouterr()
    assert re.search(r"vmddpm: .* parameters.*\nwarning: about [\d,]+ days on this CPU for", captured.out)
    assert "no such file or folder" in captured.err


def test_errors_are_one_line_with_the_fix(scans, capsys):
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
        assert f"device is '{device}', which torch " in error
        assert ("use cpu or auto" if ":" in device else "did you mean cuda?") in error

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


def commands():
    """The words of every command and subcommand."""
    for name in COMMANDS:
        module = import_module(f"vmddpm.cli.{name}")
        yield from ((name, inner) for inner in module.COMMANDS) if hasattr(module, "COMMANDS") else [(name,)]


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_every_help_has_examples_that_parse(capsys):
    seen = [(), *{words[:1] for words in commands()}, *(words for words in commands() if len(words) == 2)]
    assert len(seen) > len(COMMANDS) + len(DATASETS)
    for words in seen:
        for switch in ("--help", "--help-all"):
            text = help_of(capsys, *words, switch) if words != ("info",) else help_of(capsys, "info", "--help")
            examples = re.findall(r"^  (?:torchrun .* -- )?(vmddpm.*)", text, re.MULTILINE)
            assert any(shlex.split(line)[: len(words) + 1] == ["vmddpm", *words] for line in examples), words
        for line in examples:
            with pytest.raises(SystemExit, match=r"^0$") if "--print_config" in line else nullcontext():
                parse(shlex.split(line)[1:])


@pytest.mark.parametrize("words", sorted(set(commands()) - {("info",)}), ids=" ".join)
def test_the_short_help_fits_a_screen_and_the_long_one_has_every_option(words, capsys):
    short, whole = help_of(capsys, *words, "--help"), help_of(capsys, *words, "--help-all")
    assert len(short.splitlines()) <= 60
    options = [action.option_strings[0] for action in build_parser(*words)._choices() if action.option_strings]
    assert all(option in whole for option in options)
    required = re.findall(r"--[a-z.-]+", short.splitlines()[0])
    assert all(re.search(rf"^  {option} ", short, re.MULTILINE) for option in required)
    assert f"`vmddpm {' '.join(words)} --help-all`" in short


def test_version(capsys):
    assert help_of(capsys, "--version") == f"vmddpm {version('vmddpm')}\n"


def test_help_does_not_wait_for_what_only_runs_need():
    program = (
        "import sys; from vmddpm.cli import build_parser; build_parser('train').format_help(); "
        "print([name for name in ('diffusers', 'torch._dynamo', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_what_the_base_install_can_do_needs_no_extra():
    """Runs in a process where the packages of the extras are hidden."""
    extras = ["jsonargparse", "yaml", "diffusers", "huggingface_hub", "safetensors", "nibabel", "pydicom", "PIL",
              "tqdm", "tifffile", "imagecodecs", "tensorboard", "matplotlib", "scipy", "starlette"]  # fmt: skip
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({extras})); from vmddpm.cli import main\n"
        "for words in (['--help'], ['--version'], ['info', '--help'], ['info'], ['study', '--help'], ['trian']):\n"
        "    try: code = main(words)\n"
        "    except SystemExit as stopped: code = stopped.code\n"
        "    print(code)\n"
        "sys.exit(main(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert re.findall(r"^\d+$", done.stdout, re.MULTILINE) == ["0", "0", "0", "0", "0", "2"]
    assert "did you mean train?" in done.stderr
    assert 'pip install "vmddpm[train]"' in done.stderr


def test_help_quotes_the_paper(capsys):
    text = " ".join(help_of(capsys, "train", "--help-all").split())
    assert "connect two State Space Layers (SSLayers) in series" in text


def test_every_option_is_explained_before_the_paper_is_quoted():
    for words in commands():
        for action in build_parser(*words)._actions:
            assert not re.match(r'\s*(?:"|[IVX]+-[A-D])', action.help or ""), (words, action.dest, action.help)


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
    assert set(plain) == {"model", "diffusion", "data", "training", "system", "unet", "gan", "condition"}
    if preset.startswith("paper"):
        assert plain["model"]["base_channels"] == 96
        assert plain["model"]["sampling"] == [4, 2, 2, 2]
        assert plain["data"]["size"] == 128
        assert plain["training"]["batch_size"] == 16
        assert plain["training"]["learning_rate"] == 1e-4
        assert plain["diffusion"]["prediction_type"] == "epsilon"
        assert plain["data"]["limit"] == (34999 if preset == "paper-chestxray" else None)


def test_paper_presets_choose_the_right_files(tmp_path):
    """Each preset is run on a small tree in the data set's layout."""
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
    ("module", "fix", "arguments"),
    [("jsonargparse", 'pip install "vmddpm[train]"', ["train"]),
     ("fcntl", "Linux or macOS", ["sample", "--run", "r", "--out", "o"]),
     ("nilearn", 'pip install ".[demo]"', ["demo"]),
     ("nilearn", 'pip install ".[demo]"', ["table1", "--out", "t"]),
     ("scipy", 'pip install "vmddpm[study]"', ["study", "report", "--counts", "1", "1", "1", "1"]),
     ("starlette", 'pip install "vmddpm[study]"', ["study", "serve", "study"])],
)  # fmt: skip
def test_a_missing_module_is_named_with_the_fix(module, fix, arguments, tmp_path):
    program = f"import sys; sys.modules[{module!r}] = None; from vmddpm.cli import main; sys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(rf"{module}\S* is missing", done.stderr)
    assert fix in done.stderr
    assert not list(tmp_path.iterdir())


def test_demo_configuration_and_slices():
    config = demo_config(2.5)
    assert isinstance(config, RunConfig)
    assert config.training.minutes == 2.5
    dataset = mni152_slices(config.data)
    assert len(dataset) >= 64
    assert {s.axis for s in dataset.slices} == {"axial", "coronal", "sagittal"}
    assert dataset[0].shape == (1, 64, 64)


def test_demo_configuration_and_crops_of_volumes():
    config = demo_config(2.5, "demo-3d")
    assert (config.data.shape, config.data.voxel_sizes) == ((1, 32, 32, 32), (5, 5, 5))
    dataset = mni152_crops(config.data)
    assert len(dataset) >= 100
    assert dataset[0].shape == config.data.shape
    with pytest.raises(InputError, match="preset is 'demo-4d'; it must be one of demo, demo-3d"):
        demo(Path("nowhere"), preset="demo-4d")


@pytest.mark.slow
def test_demo_of_volumes_in_a_minute(tmp_path):
    done = run("demo", "--preset", "demo-3d", "--minutes", 1, "--images", 4, "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["steps"] > 0
    volumes = sorted((tmp_path / "demo" / "volumes").glob("*.nii.gz"))
    assert len(volumes) == 4
    image = SimpleITK.ReadImage(str(volumes[0]))
    assert (image.GetSize(), image.GetSpacing()) == ((32, 32, 32), (5.0, 5.0, 5.0))
    assert nib.aff2axcodes(nib.load(volumes[0]).affine) == ("L", "P", "S")


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
