"""User errors are one line; bugs show a traceback."""

import ast
import builtins
import errno
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import vmddpm.info
from vmddpm.cli import main
from vmddpm.devices import choose_device
from vmddpm.errors import InputError, VmddpmError
from vmddpm.systems import cost
from vmddpm.training import RunFolder
from vmddpm.training.networks import build_network
from vmddpm.training.ranks import process_group, rank_and_count
from vmddpm.training.run_folder import from_plain

SMALL = """
model: {base_channels: 8, channel_multipliers: [1, 2], sampling: [2, 2], norm_groups: 4, d_state: 2}
diffusion: {timesteps: 20}
data: {root: images, size: 16, min_foreground: 0.0}
training: {steps: 1, batch_size: 2, sample_every: 0, sample_steps: 2, device: cpu}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Intact and damaged images, and runs with intact and damaged weights."""
    place = tmp_path_factory.mktemp("errors")
    random = np.random.default_rng(0)
    for name, size in (("images", 16), ("other", 8), ("broken", 16), ("mixed", 16)):
        (place / name).mkdir()
        for i in range(6):
            Image.fromarray(random.integers(0, 255, (size, size), np.uint8)).save(place / name / f"{i:06d}.png")
    whole = (place / "broken" / "000000.png").read_bytes()
    (place / "broken" / "000000.png").write_bytes(whole[:-60])
    Image.new("L", (9, 9)).save(place / "mixed" / "000003.png")
    (place / "blocks").mkdir()
    (place / "blocks" / "images-00000000.npy").write_bytes(b"no array")
    (place / "small.yaml").write_text(SMALL)
    config = from_plain(yaml.safe_load(SMALL))
    for name in ("run", "damaged", "swapped"):
        RunFolder(place / name).save_weights("ema", build_network(config))
        (place / name / "config.yaml").write_text(SMALL)
    (place / "damaged" / "weights" / "ema" / "model.safetensors").write_bytes(b"x" * 100)
    weights = place / "swapped" / "weights" / "ema" / "config.json"
    weights.write_text(weights.read_text().replace('"base_channels": 8', '"base_channels": 16'))
    for name, text in (("unreadable", "model: [\n"), ("unknown", "model: {base_chanels: 8}\n")):
        (place / name).mkdir()
        (place / name / "config.yaml").write_text(text)
    (place / "strange").mkdir()
    (place / "strange" / "sampling.yaml").write_text("{")
    (place / "no-file" / "config.yaml").mkdir(parents=True)
    (place / "odd").mkdir()
    for name, content in (("empty", b""), ("bytes", b"\xff\xfe"), ("list", b"- 1\n"), ("number", b"{1: 2}\n"),
                          ("single", b"training: 5\n"), ("inner", b"training: [1]\n")):  # fmt: skip
        (place / "odd" / f"{name}.yaml").write_bytes(content)
    (place / "xrays").mkdir()
    (place / "xrays" / "Data_Entry_2017.csv").write_text("Image Index,Patient ID\n00000001_000.png,x\n")
    return place


@pytest.fixture
def run_in_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(folder)


TRAIN = "train --config small.yaml --run new"
EVALUATE = "evaluate --run run --out new --extractor.path random"


@pytest.mark.usefixtures("run_in_folder")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{TRAIN} --data.root nowhere", "nowhere: no such file or folder"),
        (f"{TRAIN} --data.root ~nobody-here/images", "~nobody-here/images: no such file or folder"),
        (f"{TRAIN} --data.root broken", "broken/000000.png: cannot be read as an image"),
        (f"{TRAIN} --training.steps -1", "steps is -1; it must be at least 0"),
        (f"{TRAIN} --model.d_state 300", "d_state is 300; it must be from 1 to 256"),
        (f"{TRAIN} --system unet --unet.norm_groups 0", "unet.norm_groups is 0; it must be at least 1"),
        ("train --config small.yaml --run images", "images is not empty and holds no run"),
        ("sample --run nowhere --out new", "nowhere holds no run"),
        ("sample --run run --out new --sampler none", "sampler is 'none'"),
        ("sample --run damaged --out new", "damaged/weights/ema holds no ema weights of this run"),
        ("sample --run swapped --out new", "swapped/weights/ema holds no ema weights of this run"),
        ("sample --run unreadable --out new", "unreadable/config.yaml cannot be read: while parsing"),
        ("sample --run unknown --out new", "unknown/config.yaml cannot be read: .*base_chanels"),
        ("sample --run run --out strange", "strange/sampling.yaml cannot be read"),
        (f"{EVALUATE} --samples nowhere", "nowhere holds 0 numbered images"),
        (f"{EVALUATE} --samples broken", "broken/000000.png cannot be read"),
        (f"{EVALUATE} --samples blocks", "blocks/images-00000000.npy cannot be read"),
        (f"{EVALUATE} --samples other", r"pixels \(1, 8, 8\), the training images have \(1, 16, 16\)"),
        (f"{EVALUATE} --samples mixed", r"mixed/000003.png holds uint8 images with channels and pixels \(1, 9, 9\)"),
        (f"{EVALUATE} --samples images --metrics.seed -1", "metrics.seed is -1"),
        ("prepare folder images --out new --patient (", r"patient is '\(', which is not a regular expression"),
        ("prepare chestxray xrays --out new", "xrays/Data_Entry_2017.csv: cannot be read"),
        ("data check images", "images: is not a store"),
        ("study create --real images --synthetic other --out new --patient [", "not a regular expression"),
        ("study report nowhere", "nowhere/study.json does not exist"),
        ("table1 --out new --dataset mnist", "dataset is 'mnist'"),
        ("demo --out new --images 1", "images is 1; it must be from 2 to"),
        ("demo --out new --minutes -1", "minutes is -1"),
    ],
)
def test_an_error_of_the_user_is_one_line(command, words, capsys):
    name = f"vmddpm {command.split()[0]}: "
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    before, _, line = error.partition(name)
    assert not before or before.endswith("\n")
    assert re.fullmatch(rf".*{words}.*\n", line), error
    assert not Path("new").exists()


MISTAKES = [  # command line, what its message must say, and the remedy it must name
    ("", "a command is missing", "vmddpm --help"),
    ("trian", "did you mean train", "its commands are train, sample"),
    ("help", "'help' is not a command", "did you mean --help"),
    ("--config demo train", "--config must come after the command", "train goes first: `vmddpm train --config"),
    ("--minutes demo", "--minutes must come after the command", "demo goes first: `vmddpm demo --minutes"),
    ("sample --run run --num 3", "--num is not an option", "did you mean --images"),
    ("train --config demo --data.rot images --run new", "--data.rot is not an option", "did you mean --data.root"),
    ("train --conf demo --run new", "--conf is not an option", "did you mean --config"),
    ("train --steps 10 --run new", "--steps is not an option", "did you mean --training.steps"),
    ("train --config dmo --run new", "neither a file nor a preset; did you mean demo", "the presets are demo, demo-3d"),
    ("train --config images --run new", "--config images: is a folder", "give a YAML file"),
    ("train --config small.yaml", "--run is missing", "the run folder"),
    ("train images --config small.yaml --run new", "'images' is one word too many", "usage: vmddpm train --run RUN"),
    ("train --config small.yaml --run new --training.steps many", "steps is 'many'", "a whole number"),
    ("train --config small.yaml --run new --training.precision fp8", "is 'fp8'", "one of fp32, bf16, fp16"),
    ("train --config small.yaml --run new --training.minutes soon", "is 'soon'", "a number or null"),
    ("train --config small.yaml --run new --data.window 40", "window is '40'", "2 numbers in brackets"),
    ("train --config unknown/config.yaml --run new", "entry model.base_chanels", "did you mean model.base_channels"),
    ("train --config unreadable/config.yaml --run new", "is not a YAML file of options", "--help-all"),
    ("train --config small.yaml --run new --data.root nowhere", "nowhere: no such file", "name an image or a folder"),
    ("train --config small.yaml --run new --data.root broken", "000000.png: cannot be read", "set on_error to skip"),
    ("train --config small.yaml --run run --model.d_state 4", "model.d_state is 2 there and 4", "another folder"),
    ("train --config small.yaml --run new --training.learning_rate 1e400", "learning_rate is inf", "finite number"),
    ("train --config small.yaml --run new --data.size 100000000000", "size is 100000000000", "at most 8,192"),
    ("train --config small.yaml --run new --training.seed 18446744073709551616", "seed is 1844", "at most"),
    ("train --config small.yaml --run new --training.device gpu", "device is 'gpu'", "did you mean cuda"),
    ("train --config= --run new", "--config '': names no file", "it must be YAML in UTF-8"),
    ("train --config odd/empty.yaml --run new", "odd/empty.yaml: is empty", "it must be YAML in UTF-8"),
    ("train --config odd/bytes.yaml --run new", "odd/bytes.yaml: is not UTF-8 text", "it must be YAML in UTF-8"),
    ("train --config odd/list.yaml --run new", "odd/list.yaml: is a list", "it must be YAML in UTF-8"),
    ("train --config odd/number.yaml --run new", "has the entry '1', which is not a name", "it must be YAML in UTF-8"),
    ("train --config odd/single.yaml --run new", "has training as the single value '5'", "it must be YAML in UTF-8"),
    ("train --config odd/inner.yaml --run new", "has training as a list", "it must be YAML in UTF-8"),
    ("--run new train", "--run must come after the command", "train goes first: `vmddpm train --run ...`"),
    ("sample --run run --out new --images 3000000000", "images is 3000000000", "another seed, to another folder"),
    (f"sample --run run --out new --images {10**400}", "images is a number of 401 digits", "from 1 to 10,000,000"),
    ("sample --run run --out new --batch-size 3000000000", "batch_size is 3000000000", "from 1 to 65,536"),
    ("sample --run run --out new --seed 18446744073709551616", "seed is 1844", "below 2^63"),
    ("table1 --out new --minutes 1e400", "minutes is inf", "a finite number, or null"),
    ("table1 --out new --images 3000000000", "images is 3000000000", "from 1 to 10,000,000"),
    ("demo --out new --minutes 1e400", "minutes is inf", "at most 10,000,000"),
    ("evaluate --run run --samples images --out new", "extractor.path is not given", "curl -LO https://"),
    ("evaluate --run run --samples images --out new --extractor.path no.pt", "no file no.pt", "curl -LO https://"),
    ("sample --run nowhere --out new", "nowhere holds no run", "config.yaml"),
    ("sample --run run --out new --ordered=yes", "--ordered takes no value", "scan in order"),
    ("sample --run run --out new --sampler none", "sampler is 'none'", "ddim"),
    ("evaluate --run run --samples images --extractor.path random", "--out is missing", "folder for the result"),
    ("prepare brast x --out new", "did you mean brats", "acdc, brats, chestxray, folder"),
    ("prepare brats x --out new --modality flar", "did you mean flair", "one of flair, t1, t1ce, t2"),
    ("study create --real images --out new", "--synthetic is missing", "folder of synthetic images"),
    ("study serve nowhere --port many", "--port is 'many'", "a whole number"),
    ("data check images", "is not a store", "vmddpm prepare"),
    ("info --hlp", "--hlp is not an option", "did you mean --help"),
    ("demo --out new --minutes", "--minutes: a value is missing", "--minutes: "),
]


@pytest.mark.usefixtures("run_in_folder")
@pytest.mark.parametrize(("command", "words", "fix"), MISTAKES)
def test_a_mistake_gets_three_lines_with_the_fix(command, words, fix, capsys):
    try:
        code = main(command.split())
    except SystemExit as stopped:
        code = stopped.code
    assert code in (1, 2)
    output, error = capsys.readouterr()
    message = error[error.index("vmddpm") :]  # after a progress bar, if any
    assert not output or code == 1
    assert words in message
    assert fix in message
    assert len(message.splitlines()) <= 3
    assert all(len(line) <= 200 for line in message.splitlines())
    assert not Path("new").exists()


@pytest.mark.usefixtures("run_in_folder")
@pytest.mark.parametrize("command", [f"--traceback {TRAIN}", f"{TRAIN} --traceback"])
def test_traceback_shows_where_an_error_of_the_user_arose(command, capsys):
    assert main([*command.split(), "--training.steps", "-1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert "in __post_init__" in error
    assert error.endswith("\nvmddpm train: steps is -1; it must be at least 0\n")


def fail(monkeypatch, failure):
    """Make `vmddpm info` fail with an error."""

    def describe():
        if isinstance(failure, BaseException):
            raise failure
        failure()

    monkeypatch.setattr(vmddpm.info, "describe", describe)


@pytest.mark.parametrize(
    ("failure", "words"),
    [(lambda: np.zeros(6).reshape(4), "ValueError: cannot reshape array of size 6"), (lambda: {}["a"], "KeyError: 'a'"),
     (lambda: len(3), "TypeError: object of type 'int'"), (RuntimeError("no kernel"), "RuntimeError: no kernel"),
     (lambda: import_module("vmddpm.lost"), "No module named 'vmddpm.lost'"), (AssertionError(), "AssertionError")],
)  # fmt: skip
@pytest.mark.parametrize("switch", [[], ["--traceback"]])
def test_a_fault_of_the_program_shows_its_traceback(failure, words, switch, monkeypatch, capsys):
    fail(monkeypatch, failure)
    assert main(["info", *switch]) == 70
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert f"Error: {words}" in error or f"\n{words}" in error
    assert "in describe" in error
    assert error.endswith("\nvmddpm info: unexpected error; please report the lines above with the output of `vmddpm "
                          "info`\n")  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "line"),
    [(OSError(errno.ENOSPC, "No space left on device", "runs/a"), "[Errno 28] No space left on device: 'runs/a'"),
     (PermissionError(errno.EACCES, "Permission denied", "b"), "[Errno 13] Permission denied: 'b'"),
     (TimeoutError(), "TimeoutError"),
     (ModuleNotFoundError("No module named 'pydicom'", name="pydicom"),
      "pydicom is missing; `pip install \"vmddpm[train]\"` installs it")],
)  # fmt: skip
def test_an_error_of_the_system_is_one_line_that_names_the_switch(failure, line, monkeypatch, capsys):
    fail(monkeypatch, failure)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == f"vmddpm info: {line}; to see where, add --traceback\n"
    assert main(["info", "--traceback"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert error.endswith(f"\nvmddpm info: {line}\n")


@pytest.mark.usefixtures("run_in_folder")
def test_a_folder_in_the_place_of_a_file_is_an_error_of_the_system(capsys):
    assert main(["sample", "--run", "no-file", "--out", "new"]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"vmddpm sample: .*no-file/config.yaml'; to see where, add --traceback\n", error)


def test_ctrl_c_is_exit_code_130_and_prints_nothing(monkeypatch, capsys):
    fail(monkeypatch, KeyboardInterrupt())
    assert main(["info"]) == 130
    assert not any(capsys.readouterr())


@pytest.mark.parametrize(("word", "unbuffered"), [("info", ""), ("info", "1"), ("--help", "")])
def test_a_closed_output_ends_the_command_silently(word, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "vmddpm.cli", word], stdout=writer, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": unbuffered})  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vmddpm.cli", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "vmddpm info: [Errno 28] No space left on device; to see where, add --traceback\n"


@pytest.mark.usefixtures("run_in_folder")
@pytest.mark.parametrize(
    ("backend", "words"),
    [("abacus", "unknown backend 'abacus'; backend must be one"), ("cuda", "backend 'cuda' (is not available|does)")],
)
def test_kernels_that_cannot_be_used_are_named_before_work_begins(backend, words, monkeypatch, capsys):
    monkeypatch.setenv("VMDDPM_BACKEND", backend)
    for command in (TRAIN, "sample --run run --out new --device cpu", "table1 --out new --device cpu"):
        assert main(command.split()) == 1
        name = f"vmddpm {command.split()[0]}"
        assert re.fullmatch(rf"{name}: VMDDPM_BACKEND in the environment: {words}.*\n", capsys.readouterr().err)
    with pytest.raises(InputError, match="VMDDPM_BACKEND"):
        cost(from_plain(yaml.safe_load(SMALL)))
    assert choose_device("cpu").type == "cpu"  # for a network without scans
    assert main(["info"]) == 0
    assert not Path("new").exists()


def test_processes_started_without_torchrun_are_pointed_to_it(monkeypatch):
    for rank, count in (("one", "2"), ("2", "2"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(InputError, match=r"RANK is .* start processes with torchrun"):
            rank_and_count()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    message = r"2 processes cannot be connected .* start them with torchrun"
    with pytest.raises(InputError, match=message), process_group("cpu"):
        pass


# Built-in exceptions that vmddpm raises, with the reason.
ALLOWED = {
    ("__init__.py", "AttributeError"): "a module that has no such attribute says so as any does",
    ("cli/__init__.py", "SystemExit"): "help was asked for and shown, as by argparse",
    ("cli/usage.py", "SystemExit"): "a misspelt command line ends as argparse ends one",
    ("files.py", "OSError"): "a system call that Python has no function for fails as those of Python do",
    ("training/interrupts.py", "KeyboardInterrupt"): "a second Ctrl-C ends the command as Ctrl-C does anywhere",
    ("training/trainer.py", "KeyboardInterrupt"): "a run that was asked to stop is saved and ends as by Ctrl-C",
}


def sources():
    root = Path(vmddpm.__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def is_builtin_exception(node):
    found = getattr(builtins, node.id, None) if isinstance(node, ast.Name) else None
    return isinstance(found, type) and issubclass(found, BaseException)


def test_every_raised_error_is_a_vmddpm_error():
    """A bare ValueError from vmddpm would be reported as a bug."""
    found = {}
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise):
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                if is_builtin_exception(raised):
                    found.setdefault((name, raised.id), []).append(node.lineno)
    assert set(found) == set(ALLOWED), {place: lines for place, lines in found.items() if place not in ALLOWED}


def test_every_vmddpm_exception_has_the_one_base():
    """Our classes that also derive from a built-in exception name our base first."""
    derived = [(name, node) for name, tree in sources() for node in ast.walk(tree)
               if isinstance(node, ast.ClassDef) and any(map(is_builtin_exception, node.bases))]  # fmt: skip
    assert len(derived) > 5
    for name, node in derived:
        module = import_module("vmddpm." + name.removesuffix(".py").replace("/", "."))
        assert issubclass(getattr(module, node.name), VmddpmError), f"{name}: {node.name}"
