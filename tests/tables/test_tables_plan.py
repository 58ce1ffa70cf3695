"""The contents of the tables: the paper's printed figures, and rows that are complete configurations."""

import re
from importlib.resources import files

import pytest
import yaml

from vmddpm.tables.paper import DATASETS, TABLE_I, TABLE_II
from vmddpm.tables.produce import run_name
from vmddpm.tables.protocol import ablation_rows, deep_merge, load_protocol, table1_rows
from vmddpm.training.run_folder import from_plain, to_plain


def test_the_papers_figures_agree_with_its_text():
    """"an improvement of": VM-DDPM against DDIM -45.7, -44.1 and -27.2 %; Sequence Regeneration gains 5.000, 1.065 and
    6.166; and both tables print the same figures for the whole model."""
    for ours, ddim, percent in zip(TABLE_I["VM-DDPM"], TABLE_I["DDIM"], (-45.7, -44.1, -27.2)):
        assert 100 * (ours / ddim - 1) == pytest.approx(percent, abs=0.06)
    for without, with_it, gain in zip(TABLE_II["CSM"], TABLE_II["Regenerate CSM"], (5.000, 1.065, 6.166)):
        assert without - with_it == pytest.approx(gain, abs=1e-9)
    assert TABLE_II["Regenerate CSM"] == TABLE_I["VM-DDPM"]
    assert all(row[2] > row[1] for name, row in TABLE_I.items() if name != "SAGAN")


@pytest.mark.parametrize("dataset", DATASETS)
def test_paper_preset_is_the_papers_protocol(dataset):
    protocol = load_protocol("paper", dataset)
    assert (protocol.images, protocol.minutes, protocol.steps["ddpm"]) == (50_000, None, 1000)
    rows = {row.name: row.configs[0] for row in table1_rows(protocol)}
    assert list(rows) == list(TABLE_I)
    for config in rows.values():
        assert (config.data.size, config.training.batch_size, config.training.learning_rate) == (128, 16, 1e-4)
    assert (rows["SAGAN"].gan.latent_dim, rows["SAGAN"].gan.loss) == (1000, "bce")
    assert rows["VM-DDPM"].model.base_channels == 96
    preset = yaml.safe_load((files("vmddpm.presets") / f"paper-{dataset}.yaml").read_text())
    assert rows["VM-DDPM"] == from_plain({**preset, "training": {**preset["training"], "seed": 0, "minutes": None}})


@pytest.mark.parametrize(("preset", "dataset"), [("tiny", None), ("paper", "acdc")])
def test_rows(preset, dataset):
    protocol = load_protocol(preset, dataset)
    table, ablation = table1_rows(protocol), ablation_rows(protocol)
    assert [row.printed for row in table] == list(TABLE_I.values())
    assert [row.configs[0].system for row in table] == ["dcgan", "sagan", "unetgan", "unet", "unet", "vmddpm"]
    assert (table[3].configs, table[3].sampler) == (table[4].configs, "ddpm")
    assert table[4].sampler == "ddim"
    ordered, shuffled, ordered_later, patches, zoh, one = ablation
    assert (ordered.printed, shuffled.printed) == (TABLE_II["CSM"], TABLE_II["Regenerate CSM"])
    assert all(row.printed is None for row in (ordered_later, patches, zoh, one))
    models = [row.configs[0].model for row in ablation]
    assert [m.regeneration for m in models] == [False, True, True, True, True, True]
    assert (models[3].regeneration_patch_size, models[4].discretization, models[5].scans) == (2, "zoh", 1)
    assert (ordered_later.configs, ordered_later.ordered) == (shuffled.configs, True)
    # Table I's VM-DDPM and Table II's whole model share one run.
    assert run_name(shuffled.configs[0]) == run_name(table[5].configs[0])
    runs = {run_name(config) for row in (*table, *ablation) for config in row.configs}
    assert len(runs) == 5 + 5 * len(protocol.seeds["ablate"]) - 1


def test_a_longer_training_is_the_same_run():
    protocol = load_protocol("tiny")
    plain = to_plain(protocol.run_config("sagan", 0))
    changes = {"training": {"minutes": 9.0, "device": "cpu"}, "data": {"root": "elsewhere"}}
    longer = from_plain(deep_merge(plain, changes))
    other = from_plain(deep_merge(plain, {"gan": {"loss": "hinge"}}))
    assert run_name(longer) == run_name(from_plain(plain)) != run_name(other)
    assert re.fullmatch(r"sagan-seed0-[0-9a-f]{8}", run_name(longer))


def test_unknown_presets():
    with pytest.raises(ValueError, match="preset is 'huge'"):
        load_protocol("huge")
    for dataset in (None, "mnist"):
        with pytest.raises(ValueError, match="one of chestxray, brats2018, acdc"):
            load_protocol("paper", dataset)
