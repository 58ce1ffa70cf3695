"""Every example runs as printed, with the stated output."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(folder, name, *arguments, quiet=False):
    """Run an example in its own process in an empty folder; returns its output. `quiet`: it must not warn."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (quiet and done.stderr), done.stderr  # transformers reports every operator that it did not find
    return done.stdout


def test_there_is_a_test_for_every_example():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.iterdir() if path.is_file() and f'"{path.name}"' not in text] == []


def test_an_ss2d_block_learns(tmp_path):
    printed = run(tmp_path, "ss2d_block.py", "--steps", 20)
    first, last = map(float, re.findall(r"error (\S+)", printed))
    assert last < 0.8 * first


def test_swapped_imports_compute_the_same(tmp_path):
    errors = [float(error) for error in re.findall(r"relative error (\S+)", run(tmp_path, "swap_imports.py"))]
    assert len(errors) == 4
    assert max(errors) < 1e-5


def results(printed):
    return re.search(r"loss (\S+), norm of the gradients (\S+), new tokens (.*)", printed).groups()


def test_the_mamba_of_transformers_finds_the_operators(tmp_path):
    pytest.importorskip("transformers")
    loss, norm, tokens = results(run(tmp_path, "hf_mamba_cpu.py", "--tokens", 32, quiet=True))
    assert (float(loss.rstrip(",")), float(norm.rstrip(","))) > (0, 0)
    assert len(tokens.split()) == 8


@pytest.mark.slow
def test_the_mamba_of_transformers_has_the_same_loss_and_gradients(tmp_path):
    pytest.importorskip("transformers")
    ours, plain = (results(run(tmp_path, "hf_mamba_cpu.py", *flags)) for flags in ([], ["--plain"]))
    assert ours[2] == plain[2]
    for a, b in zip(ours[:2], plain[:2]):
        assert float(a.rstrip(",")) == pytest.approx(float(b.rstrip(",")), abs=2e-4)


def test_training_on_dicom_files_draws_images(tmp_path):
    from PIL import Image

    printed = run(tmp_path, "train_on_my_dicom.py", "--steps", 2)
    assert "32 images of 32 x 32" in printed
    images = sorted((tmp_path / "runs/my-dicom/images").glob("0*.png"))
    assert len(images) == 8
    assert {Image.open(path).size for path in images} == {(32, 32)}


def test_the_reader_study_prints_what_the_page_shows(capsys):
    from vmddpm.cli import parse

    text = (EXAMPLES / "reader_study.md").read_text(encoding="utf-8")
    (counts,) = re.findall(r"^vmddpm (study report --counts .*)$", text, re.MULTILINE)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    parse(counts.split()).run()
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown.splitlines() if line not in printed] == []
