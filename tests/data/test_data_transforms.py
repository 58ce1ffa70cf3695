"""Crop, normalise, resize and flip, against closed forms, NumPy and Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vmddpm.data import DataConfig, DataError, random_flip
from vmddpm.data.transforms import centre_square, choose_mode, display_range, normalise, prepare, resize


@pytest.mark.parametrize(("height", "width"), [(200, 300), (37, 53), (20, 24)])
def test_resize_is_the_antialiased_one_of_pillow(height, width):
    # Pillow resizes mode "F" in floating point with the same filter.
    image = np.random.default_rng(0).standard_normal((height, width)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    resized = resize(torch.from_numpy(image)[None, None], 32)[0, 0].numpy()
    np.testing.assert_allclose(resized, expected, atol=2e-6)


def test_resize_removes_what_the_small_image_cannot_hold():
    stripes = torch.arange(256).remainder(2).float().expand(1, 1, 256, 256)
    inner = resize(stripes, 64)[..., 4:-4]
    assert (inner - 0.5).abs().max() < 1e-6


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.3, 8),
    st.floats(0.3, 8),
)
def test_centre_square_is_square_in_millimetres_and_centred(height, width, row_mm, column_mm):
    rows, columns = np.mgrid[:height, :width]
    try:
        part = centre_square(np.stack([rows, columns], 2), (row_mm, column_mm))
    except DataError:
        assert min(height * row_mm, width * column_mm) < 2.5 * max(row_mm, column_mm)
        return
    side = min(height * row_mm, width * column_mm)
    assert abs(part.shape[0] * row_mm - side) <= row_mm / 2 + 1e-9
    assert abs(part.shape[1] * column_mm - side) <= column_mm / 2 + 1e-9
    for axis, length in ((0, height), (1, width)):
        before, after = part[0, 0, axis], length - 1 - part[-1, -1, axis]
        assert 0 <= after - before <= 1


def test_a_plane_too_thin_for_an_image_is_an_error():
    with pytest.raises(DataError, match="only 1 x 10 pixels; choose other axes"):
        centre_square(np.zeros((1, 64)), (10.0, 1.0))


def test_normalise_is_linear_between_black_and_white_and_clips():
    pixels = np.array([-5, 0, 5, 10, 15], np.float32)
    np.testing.assert_array_equal(normalise(pixels, 0, 10), np.array([-1, -1, 0, 1, 1], np.float32))
    np.testing.assert_array_equal(normalise(pixels, 10, 0), np.array([1, 1, 0, -1, -1], np.float32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("black", "white"), [(0.0, 10.0), (10.0, 0.0)])
def test_voxels_that_are_not_finite_are_background(black, white):
    pixels = np.array([np.nan, np.inf, -np.inf, 5], np.float32)
    np.testing.assert_array_equal(normalise(pixels, black, white), [-1, -1, -1, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "largest"), [
    (np.float32, 3.3e38), (np.float32, 1e-38), (np.float64, 1.7e308), (np.float64, 1e-300), (np.float64, 1e-310),
])  # fmt: skip
def test_the_ends_of_floating_point_are_in_range(dtype, largest):
    shown = np.linspace(-1, 1, 257)
    np.testing.assert_allclose(normalise((shown * largest).astype(dtype), -largest, largest), shown, atol=1e-6)


@pytest.mark.parametrize("mode", ["percentile", "full"])
@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_constant_image_is_black(mode, value):
    pixels = np.full((8, 8), value, np.float32)
    black, white = display_range(pixels, mode, DataConfig())
    assert (prepare(pixels, black, white, DataConfig(size=4)) == -1).all()


def test_percentiles_are_those_of_the_finite_values():
    values = np.random.default_rng(1).gamma(2, 100, (20, 30, 10)).astype(np.float32)
    values_with_gaps = values.copy()
    values_with_gaps[:, :, 0], values_with_gaps[0, 0, 1] = np.nan, np.inf
    finite = np.sort(values_with_gaps[np.isfinite(values_with_gaps)])
    config = DataConfig(percentiles=(2.0, 90.0))
    black, white = display_range(values_with_gaps, "percentile", config)
    for fraction, value in ((0.02, black), (0.9, white)):
        # NumPy's default: linear interpolation between order statistics.
        rank = fraction * (finite.size - 1)
        below = int(rank)
        expected = finite[below] + (rank - below) * (finite[below + 1] - finite[below])
        assert value == pytest.approx(expected, rel=1e-5)


def test_a_volume_that_is_nearly_all_background_keeps_its_image():
    values = np.zeros((100, 100), np.float32)
    values[0, :10] = 3
    assert display_range(values, "percentile", DataConfig()) == (0, 3)


@pytest.mark.parametrize(
    ("options", "has_window", "has_depth", "mode"),
    [
        ({}, False, False, "percentile"),
        ({}, True, False, "window"),
        ({}, False, True, "full"),
        ({"window": (40.0, 400.0)}, False, True, "window"),
        ({"normalize": "percentile"}, True, True, "percentile"),
        ({"normalize": "full"}, True, False, "full"),
        ({"normalize": "window"}, True, False, "window"),
    ],
)
def test_auto_takes_a_window_then_the_bit_depth_then_percentiles(options, has_window, has_depth, mode):
    assert choose_mode(DataConfig(**options), has_window, has_depth) == mode


def test_a_missing_window_is_an_error():
    with pytest.raises(DataError, match="has no window of its own; set window"):
        choose_mode(DataConfig(normalize="window"), has_window=False, has_depth=True)


def test_grey_becomes_colour_by_repetition_and_colour_becomes_grey_as_in_pillow():
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = prepare(pixels.astype(np.float32), 0, 255, DataConfig(size=32))
    expected = np.asarray(Image.fromarray(pixels).convert("L")) / 127.5 - 1
    assert grey.shape == (1, 32, 32)
    # Pillow rounds to whole levels.
    np.testing.assert_allclose(grey[0], expected, atol=0.51 / 127.5)
    colour = prepare(pixels[..., 0].astype(np.float32), 0, 255, DataConfig(size=32, channels=3))
    assert colour.shape == (3, 32, 32)
    assert (colour == colour[:1]).all()


@given(st.integers(0, 2**32 - 1))
def test_an_image_stays_in_range_whatever_is_in_it(seed):
    rng = np.random.default_rng(seed)
    pixels = (rng.standard_cauchy(tuple(rng.integers(2, 40, 2))) * 1000).astype(np.float32)
    pixels[rng.random(pixels.shape) < 0.1] = np.nan
    config = DataConfig(size=16)
    image = prepare(pixels, *display_range(pixels, "percentile", config), config)
    assert image.dtype == np.float32
    assert image.min() >= -1
    assert image.max() <= 1


def test_random_flip_mirrors_half_of_the_images_left_to_right():
    images = torch.arange(1000 * 2 * 3).view(1000, 1, 2, 3).float()
    before = images.clone()
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    # 6 standard deviations of a fair coin.
    assert abs(int(mirrored.sum()) - 500) < 6 * (1000 * 0.25) ** 0.5
    assert torch.equal(images, before)
    assert torch.equal(flipped, random_flip(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(flipped, random_flip(images, torch.Generator().manual_seed(1)))
