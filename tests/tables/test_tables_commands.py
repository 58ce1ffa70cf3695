"""`vmddpm table1` and `vmddpm ablate` from training to picture, as small as possible, and their refusals."""

import csv
import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from vmddpm.cli import main
from vmddpm.evaluation import ExtractorConfig, MetricsConfig, load_extractor
from vmddpm.tables import protocol as protocol_module
from vmddpm.tables.commands import make_table
from vmddpm.tables.paper import TABLE_I
from vmddpm.tables.render import with_deviation

SMALL = {
    "base": {
        "data": {"size": 16},
        "model": {"base_channels": 4, "channel_multipliers": [1, 1], "sampling": [2, 2], "norm_groups": 2},
        "unet": {"widths": [4, 8], "attention": [False, True], "norm_groups": 2},
        "gan": {"latent_dim": 8, "base_channels": 4, "attention_size": 8},
        "training": {"batch_size": 2, "learning_rate": 0.05, "warmup_steps": 0, "sample_steps": 2},
    },
    "systems": {name: {"training": {"steps": 2}} for name in ("dcgan", "sagan", "unetgan", "unet", "vmddpm")},
    "steps": {"ddpm": 4, "ddim": 2}, "images": 8, "batch": 8, "minutes": None,
    "metrics": {"kid_subsets": 3, "batch_size": 64},
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """The preset tiny with networks of a few hundred weights and two steps of training."""
    read = protocol_module._yaml

    def smaller(package, name):
        plain = read(package, name)
        return protocol_module.deep_merge(plain, SMALL) if package.startswith("vmddpm.tables") else plain

    monkeypatch.setattr(protocol_module, "_yaml", smaller)


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.reader(file))


def test_table1(tmp_path):
    """The preset tiny, except for half a second of training per run and 8 images."""
    command = ["table1", "--out", tmp_path, "--minutes", 0.008, "--images", 8, "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    record = json.loads((tmp_path / "table1.json").read_text())
    header, *lines = rows_of(tmp_path / "table1.csv")
    assert [line[0].split(" (")[0] for line in lines] == [*TABLE_I, "held-out real images"]
    assert [tuple(map(float, line[-3:])) for line in lines[:-1]] == list(TABLE_I.values())
    assert all(name.startswith("Ju and Zhou (2024): FID") for name in header[-3:])
    assert header[6] == "ours: Fréchet distance, random features"
    distances = [float(line[6]) for line in lines]
    assert all(map(math.isfinite, distances))
    assert distances[-1] < min(distances[:-1]) / 3  # unseen real images are closer than those of a barely trained model
    assert all(row["trained_steps"][0] >= 1 and len(row["results"]) == 1 for row in record["rows"])
    assert all(row["results"][0]["n_synthetic"] == 8 for row in record["rows"])
    assert float(lines[3][3]) == pytest.approx(2 * float(lines[4][3]), rel=0.01)  # DDIM takes half of DDPM's steps
    text = (tmp_path / "table1.md").read_text()
    assert text.count("|\n| ---") == 1
    assert "printed in the paper, not measured here" in text
    assert "Our distance is no FID" in text
    assert "MNI152" in text
    picture = np.asarray(Image.open(tmp_path / "table1.png").convert("L"))
    assert picture.shape[0] > 700
    assert picture.std() > 20
    assert record["rows"][0]["results"][0]["extractor"]["sha256"] == load_extractor(ExtractorConfig("random")).digest


def test_tables_resume_and_share_runs(small, tmp_path, monkeypatch):
    """The second call repeats nothing; table1 reuses the VM-DDPM run of ablate."""
    first = make_table("ablate", tmp_path, device="cpu", seeds=[0], progress=False)
    assert len(list((tmp_path / "runs").iterdir())) == 5
    text = (tmp_path / "ablate.md").read_text()
    before = {p: p.stat().st_mtime_ns for kind in ("samples", "evaluations") for p in (tmp_path / kind).rglob("*.*")
              if p.name not in ("grid.png", "manifest.json")}  # fmt: skip
    make_table("ablate", tmp_path, device="cpu", seeds=[0], progress=False)
    assert (tmp_path / "ablate.md").read_text() == text
    assert {p: p.stat().st_mtime_ns for p in before} == before
    make_table("table1", tmp_path, device="cpu", progress=False)
    assert len(list((tmp_path / "runs").iterdir())) == 9
    records = [yaml.safe_load((first.outcomes[i].samples[0] / "sampling.yaml").read_text()) for i in (1, 2)]
    assert [record.pop("ordered") for record in records] == [False, True]
    assert records[0] == records[1]  # the same weights


def test_what_stops_a_table_stops_it_before_training(tmp_path, capsys):
    table = ["table1", "--out", str(tmp_path)]
    for options, words in [
        (["--preset", "paper"], "dataset is None"),
        (["--preset", "paper", "--dataset", "acdc"], "root is not given"),
        (["--root", "x"], "are for the preset paper"),
        (["--extractor.path", str(tmp_path / "missing.pt")], "curl -LO"),
        (["--seeds", "[1,1]"], "each once"),
        (["--device", "cuda:99"], "device is 'cuda:99', which torch cannot use here"),
    ]:
        assert main([*table, *options]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_paper_preset_reads_the_users_folder(small, tmp_path, monkeypatch):
    """`--preset paper` on a folder of images; only network sizes and counts differ from the paper's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for kind, count in (("images", 12), ("unseen", 6)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            blob = rng.normal(size=(4, 4)).repeat(5, 0).repeat(5, 1) * 40 + 120
            Image.fromarray(blob.clip(0, 255).astype(np.uint8)).save(tmp_path / kind / f"{i:08d}_000.png")
    produced = make_table(
        "table1", tmp_path / "out", preset="paper", dataset="chestxray", root=str(tmp_path / "images"),
        held_out=str(tmp_path / "unseen"), extractor=ExtractorConfig(path="random", size=32), images=6, device="cpu",
        progress=False,
    )  # fmt: skip
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "12 images of ChestXRay at 16 x 16" in text
    assert "6 images are held out" in text
    assert produced.outcomes[0].results[0]["n_real"] == 12


def test_deviations():
    assert with_deviation([2.0], ".4g") == "2"
    assert with_deviation([1.0, 2.0, 4.0], ".3f") == "2.333 ± 1.528"
    assert MetricsConfig().neighbours == 3


@pytest.mark.slow
@pytest.mark.parametrize("table", ["table1", "ablate"])
def test_tiny_presets_as_they_are(table, tmp_path):
    """The whole command with its own networks, in a slightly shorter run; every system has learned something."""
    assert main([table, "--out", str(tmp_path), "--minutes", "0.2", "--images", "48", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / f"{table}.json").read_text())
    assert all(min(row["trained_steps"]) > 10 for row in record["rows"])
    assert all(r["value"] > record["held_out_real_images"]["value"] for row in record["rows"] for r in row["results"])
