"""DataConfig refuses invalid values, naming the field."""

import dataclasses

import pytest

from vmddpm.data import DataConfig, DataError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("limit", 0),
        ("channels", 2),
        ("axes", []),
        ("axes", ["axial", "axial"]),
        ("axes", ["oblique"]),
        ("frames", "last"),
        ("frames", -1),
        ("normalize_by", "patient"),
        ("max_pixels", 0),
        ("max_voxels", 0),
        ("max_members", 0),
        ("normalize", "minmax"),
        ("percentiles", (99.5, 0.5)),
        ("percentiles", (1.0, 101.0)),
        ("percentiles", (1.0,)),
        ("window", (40.0, 0.0)),
        ("window", (float("nan"), 400.0)),
        ("min_foreground", 1.5),
        ("on_error", "ignore"),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(DataError, match=rf"^{field} is .*; it must be "):
        DataConfig(**{field: value})


def test_a_window_that_would_have_no_effect_is_refused():
    with pytest.raises(DataError, match="normalize is 'percentile'"):
        DataConfig(window=(40.0, 400.0), normalize="percentile")


def test_lists_serve_as_pairs():
    assert DataConfig(percentiles=[1, 99], window=[40, 400]).size == 128


def test_every_field_is_documented():
    for field in dataclasses.fields(DataConfig):
        assert f"        {field.name}: " in DataConfig.__doc__
