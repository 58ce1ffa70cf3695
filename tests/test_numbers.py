"""Every configuration refuses unusable numbers and names their field."""

import math
from dataclasses import fields

import pytest

from vmddpm.baselines.config import GANConfig
from vmddpm.data import DataConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.errors import InputError, VmddpmError
from vmddpm.evaluation import ExtractorConfig, MetricsConfig
from vmddpm.model import ModelConfig
from vmddpm.model.unet import UNetConfig
from vmddpm.numbers import check_seed
from vmddpm.study.create import CreateOptions
from vmddpm.training import TrainingConfig

CONFIGS = (
    ModelConfig, UNetConfig, GANConfig, DiffusionConfig, DataConfig, TrainingConfig, ExtractorConfig, MetricsConfig,
    CreateOptions,
)  # fmt: skip
FIELDS = [(config, field) for config in CONFIGS for field in fields(config)]
FLOATS = [(config, field.name, "tuple" in str(field.type)) for config, field in FIELDS if "float" in str(field.type)]
INTEGERS = [(config, field.name, "tuple" in str(field.type)) for config, field in FIELDS
            if "int" in str(field.type) and field.name != "scans" and "str" not in str(field.type)]  # fmt: skip


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e400])
@pytest.mark.parametrize(("config", "name", "several"), FLOATS)
def test_every_float_is_finite(config, name, several, value):
    with pytest.raises(VmddpmError, match=rf"^(\w+\.)?{name} is .*; it must be a finite number"):
        config(**{name: (0.5, value) if several else value})


@pytest.mark.parametrize("value", [2**63, 10**5000], ids=["long", "huge"])
@pytest.mark.parametrize(("config", "name", "several"), INTEGERS)
def test_every_whole_number_is_one_of_int64(config, name, several, value):
    with pytest.raises(VmddpmError, match=rf"^(\w+\.)?{name} is .*; it must be"):
        config(**{name: (value,) * 4 if several else value})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [(DataConfig, "size", 10**11), (ModelConfig, "base_channels", 10**7), (GANConfig, "base_channels", 10**7),
     (UNetConfig, "widths", (32, 10**7)), (DiffusionConfig, "timesteps", 10**9), (TrainingConfig, "minutes", 1e300),
     (ModelConfig, "channel_multipliers", (1, 2, 4, 800))],
)  # fmt: skip
def test_sizes_that_no_memory_holds(config, name, value):
    with pytest.raises(VmddpmError, match=rf"{name} is .*; it must be"):
        config(**{name: value})


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**5000], ids=["negative", "2^63", "2^64", "huge"])
def test_seeds_that_would_draw_what_another_draws(seed):
    with pytest.raises(InputError, match=r"^seed is .*; it must be from 0 to below 2\^63$"):
        check_seed("seed", seed)
    check_seed("seed", 2**63 - 1)
