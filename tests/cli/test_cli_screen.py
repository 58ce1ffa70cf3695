"""Terminal output: every message has its own line, even under a progress bar, and no library warning appears."""

import io
import logging
import re
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from vmddpm.cli import main
from vmddpm.cli.messages import shown
from vmddpm.demo.bar import BudgetBar
from vmddpm.demo.picture import save_comparison
from vmddpm.demo.plan import Budget
from vmddpm.training.pictures import save_loss_curve

SMALL = """
model: {base_channels: 8, channel_multipliers: [1, 2], sampling: [2, 2], norm_groups: 4, d_state: 2}
diffusion: {timesteps: 20}
data: {size: 16, min_foreground: 0.05, on_error: skip}
training: {steps: 4, batch_size: 2, log_every: 1, checkpoint_every: 2, sample_every: 0, sample_steps: 2, device: cpu}
"""


class Screen(io.StringIO):
    """A terminal's standard output and standard error."""

    def isatty(self):
        return True

    def lines(self):
        """The visible lines at the end; text after a carriage return overwrites its line."""
        assert "\x1b" not in self.getvalue(), "a sequence that moves the cursor elsewhere"
        lines = []
        for written in self.getvalue().split("\n"):
            line = ""
            for part in written.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


@contextmanager
def terminal():
    screen = Screen()
    with redirect_stdout(screen), redirect_stderr(screen), warnings.catch_warnings():  # the command formats them itself
        yield screen


def bars(lines):
    """The lines with a progress bar; each must hold nothing else."""
    found = [line for line in lines if re.search(r"\d+%\|", line)]
    assert all(re.fullmatch(r"(?:[^|]*: *)?\d+%\|[^|]*\| .*[\])]", line) for line in found), found
    return found


def test_messages_are_not_mixed_with_the_bar(tmp_path, monkeypatch):
    """Two training runs, samples and an evaluation, on pictures that cause every kind of remark."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scans = tmp_path / "scans"
    scans.mkdir()
    random = np.random.default_rng(0)
    volume = random.integers(100, 200, (20, 20, 24)).astype(np.int16)
    volume[..., 12:] = 0  # dark slices
    nib.save(nib.Nifti1Image(volume, np.eye(4)), scans / "head.nii.gz")
    Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8)).save(scans / "red.png")
    for name in ("a", "b"):
        (scans / f"{name}.dcm").write_bytes(b"")
    (scans / "c.png").write_text("no picture")
    (scans / "notes.txt").write_text("of the scanner")
    (tmp_path / "small.yaml").write_text(SMALL)
    run, out = tmp_path / "run", tmp_path / "samples"
    train = ["train", "--config", tmp_path / "small.yaml", "--data.root", scans, "--run", run]
    sample = ["sample", "--run", run, "--images", 8, "--sampler", "ddim", "--steps", 4, "--out", out]
    evaluate = ["evaluate", "--run", run, "--samples", out, "--out", tmp_path / "result", "--extractor.path", "random",
                "--extractor.size", 32, "--metrics.kid_subsets", 2]  # fmt: skip
    with terminal() as screen:
        for words in (train, [*train, "--training.steps", 14], sample, evaluate):
            assert main([str(word) for word in words]) == 0, screen.getvalue()
    lines = screen.lines()
    assert len(bars(lines)) >= 5  # decoding, two trainings, samples, features
    for line in (
        "warning: 3 files could not be read and were skipped: 2 is empty; 1 cannot be read as an image",
        "13 images from " + f"{scans} (25 slices read)",
        f"note: 1 slice of 1 file, colour converted to grey; channels 3 keeps it ({scans / 'red.png'})",
        f"each of these files will be in {run / 'remarks.csv'}",
        "continues from step 4",
        f"done: weights in {run / 'weights' / 'ema'}, loss curve in {run / 'loss.png'}",
        f"8 images written to {out}",
    ):
        assert line in lines, lines
    (dark,) = {line for line in lines if "of their pixels above the background" in line}
    assert dark == (
        "left out: 12 slices of 1 file, less than 5 % of their pixels above the background; min_foreground 0 keeps "
        f"them ({scans / 'head.nii.gz'})"
    )
    (speed,) = [line for line in lines if "s a step," in line]
    assert re.fullmatch(r"[\d.e-]+ s a step, \d+ seconds left: it ends about .*, samples and checkpoints aside", speed)
    remarks = (run / "remarks.csv").read_text()
    assert all(name in remarks for name in ("a.dcm", "b.dcm", "c.png", "notes.txt", "red.png", "head.nii.gz"))


def test_messages_while_a_bar_moves_get_a_line_of_their_own():
    budget = Budget(100.0, 0.0, iter(range(1000)).__next__)
    with terminal() as screen, shown(), BudgetBar(budget) as bar:
        bar.show("training, step 3")
        logging.getLogger("vmddpm.demo").info("information")
        bar.show("training, step 4")
        logging.getLogger("vmddpm.demo").warning("trouble")
        bar.show("writing the picture")
    lines = screen.lines()
    assert "information" in lines
    assert "warning: trouble" in lines
    assert sum("%|" in line for line in lines) == 1


def test_pictures_are_drawn_without_a_warning(tmp_path):
    """With few and many images, and loss curves of one step, of equal losses and of losses at or below 0."""
    images = torch.rand(7, 1, 8, 8) * 2 - 1
    with warnings.catch_warnings(action="error"):
        for count in (1, 7):
            save_comparison(images[:count], images, tmp_path / "a.png", ("real", "synthetic, after 1,000 steps"))
        for losses in ([0.5], [0.5, 0.5], [1.0, -1.0, 0.0], list(np.linspace(1, 0.1, 100))):
            save_loss_curve([{"step": n, "loss": loss} for n, loss in enumerate(losses)], tmp_path / "b.png")
