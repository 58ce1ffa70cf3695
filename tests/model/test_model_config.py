import inspect
import json
from dataclasses import asdict, fields

import pytest
from jsonargparse import auto_cli

from vmddpm.model import ModelConfig


def test_paper_configuration():
    config = ModelConfig()
    assert config.widths == (96, 192, 384, 768)
    assert config.size_multiple == 32
    assert [config.rank(width) for width in config.widths] == [6, 12, 24, 48]
    assert config.time_dim == 384


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_channels", 2), ("base_channels", 0), ("base_channels", 33), ("sampling", ()),
        ("sampling", (4, 0, 2, 2)), ("channel_multipliers", (1, 2)), ("channel_multipliers", (1, 2, 4, 0)),
        ("layers_per_stage", 0), ("d_state", 0), ("expand", 0), ("dt_rank", 0), ("scans", 4),
        ("scans", "cross3d"), ("scans", "spiral"), ("scans", "hw,wd"), ("scans", True),
        ("discretization", "euler"), ("regeneration_patch_size", 0), ("time_embedding_dim", 0),
        ("norm_groups", 0), ("norm_groups", 36),
    ],
)  # fmt: skip
def test_bad_values_name_field_value_and_fix(field, value):
    with pytest.raises(ValueError, match=rf"{field} is .*; it must be ") as error:
        ModelConfig(**{field: value})
    assert repr(value) in str(error.value)


def test_json_round_trip():
    config = ModelConfig(base_channels=64, sampling=(2, 2, 2, 2), dt_rank=3)
    assert ModelConfig(**json.loads(json.dumps(asdict(config)))) == config
    named = ModelConfig(scans="local", base_channels=64)
    assert ModelConfig(**json.loads(json.dumps(asdict(named)))) == named
    assert named.route_count == 8
    assert hash(config) == hash(ModelConfig(base_channels=64, sampling=[2, 2, 2, 2], dt_rank=3))


def test_command_line():
    def build(model: ModelConfig) -> ModelConfig:
        return model

    arguments = ["--model.sampling=[2,2,2,2]", "--model.discretization=zoh", "--model.regeneration=false"]
    expected = ModelConfig(sampling=(2, 2, 2, 2), discretization="zoh", regeneration=False)
    assert auto_cli(build, args=arguments) == expected
    assert auto_cli(build, args=["--model.scans", "hilbert"]).scans == "hilbert"
    assert auto_cli(build, args=["--model.scans", "2"]).scans == 2
    with pytest.raises(ValueError, match="scans is 9; it must be"):
        auto_cli(build, args=["--model.scans", "9"])


def test_every_field_is_documented():
    source = inspect.getsource(ModelConfig)
    for field in fields(ModelConfig):
        after = source.split(f"\n    {field.name}: ")[1].split("\n")[1]
        assert after.startswith('    """'), field.name
