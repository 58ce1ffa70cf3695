"""PNG, JPEG and TIFF files, against Pillow and the arrays they were made from."""

import numpy as np
import pytest
from PIL import Image

from vmddpm.data import DataConfig, DataError, SliceDataset


def read(tmp_path, root, **options):
    options = {"min_foreground": 0, "size": 32, **options}
    return SliceDataset(DataConfig(root=str(root), cache_dir=str(tmp_path / "cache"), **options))


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_kept_to_the_last(tmp_path, suffix):
    pixels = noise((32, 32), np.uint16)
    pixels[0, :2] = 0, 65535
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    dataset = read(tmp_path, tmp_path / f"a.{suffix}")
    image = dataset[0][0].double().numpy()
    assert dataset[0].shape == (1, 32, 32)
    assert (image[0, 0], image[0, 1]) == (-1, 1)
    np.testing.assert_array_equal(np.rint((image + 1) / 2 * 65535), pixels)
    np.testing.assert_allclose((image + 1) / 2, pixels / 65535, atol=1e-7)


def test_8_bits_are_kept(tmp_path):
    pixels = noise((32, 32))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read(tmp_path, tmp_path / "a.png")[0][0].numpy()
    np.testing.assert_allclose((image + 1) / 2, pixels / 255, atol=1e-7)


def test_percentiles_or_a_window_can_be_requested(tmp_path):
    pixels = noise((32, 32), np.uint16) // 16
    Image.fromarray(pixels).save(tmp_path / "a.png")
    low, high = np.percentile(pixels, (0.5, 99.5))
    for options in ({"normalize": "percentile"}, {"window": ((low + high) / 2, high - low)}):
        image = read(tmp_path, tmp_path / "a.png", **options)[0][0].numpy()
        np.testing.assert_allclose(image, np.clip((pixels - low) / (high - low), 0, 1) * 2 - 1, atol=4e-5)


def test_a_wide_picture_is_cropped_at_its_centre_and_resized(tmp_path):
    pixels = noise((60, 100))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    middle = Image.fromarray(pixels[:, 20:80].astype(np.float32))
    expected = np.asarray(middle.resize((32, 32), Image.Resampling.BILINEAR)) / 127.5 - 1
    np.testing.assert_allclose(read(tmp_path, tmp_path / "a.png")[0][0].numpy(), expected, atol=2e-5)


def test_jpeg_is_read_as_pillow_reads_it_and_turned_by_its_exif_tag(tmp_path):
    smooth = np.add.outer(np.arange(32), 3 * np.arange(32)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise to view
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif)
    decoded = np.asarray(Image.open(tmp_path / "a.jpg"))
    image = read(tmp_path, tmp_path / "a.jpg")[0][0].numpy()
    np.testing.assert_allclose((image + 1) * 127.5, np.rot90(decoded, -1), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_palette_and_transparency(tmp_path, channels):
    rgb = noise((32, 32, 3))
    alpha = noise((32, 32, 1), seed=1)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(np.concatenate([rgb, alpha], 2)).save(tmp_path / "rgba.png")
    palette = Image.fromarray(rgb).quantize(64)
    palette.save(tmp_path / "palette.png")
    expected = {
        "rgb.png": rgb,
        "rgba.png": rgb * (alpha / 255),
        "palette.png": np.asarray(palette.convert("RGB")),
    }
    for name, colours in expected.items():
        image = read(tmp_path, tmp_path / name, channels=channels)[0].numpy()
        grey = (colours @ (0.299, 0.587, 0.114))[None]
        shown = np.moveaxis(colours, 2, 0) if channels == 3 else grey
        # Pillow rounds to whole levels when it composites over black.
        np.testing.assert_allclose((image + 1) * 127.5, shown, atol=0.51 if name == "rgba.png" else 2e-3)


def test_grey_with_transparency_and_one_bit(tmp_path):
    pixels = noise((32, 32, 2))
    Image.fromarray(pixels, "LA").save(tmp_path / "la.png")
    expected = pixels[..., 0] * (pixels[..., 1] / 255)
    image = read(tmp_path, tmp_path / "la.png")[0][0].numpy()
    np.testing.assert_allclose((image + 1) * 127.5, expected, atol=0.51)
    bits = noise((32, 32)) > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read(tmp_path, tmp_path / "bits.png")[0][0].numpy(), bits * 2.0 - 1)


def test_every_page_of_a_tiff_file_is_read(tmp_path):
    pages = [noise((32, 32), np.uint16, seed) for seed in range(3)]
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "a.tiff", save_all=True, append_images=others)
    dataset = read(tmp_path, tmp_path / "a.tiff")
    assert [info.frame for info in dataset.slices] == [0, 1, 2]
    for page, pixels in enumerate(pages):
        np.testing.assert_allclose((dataset[page][0].numpy() + 1) / 2, pixels / 65535, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_files_where_white_is_zero_are_inverted(tmp_path, dtype):
    pixels = noise((32, 32), dtype)
    Image.fromarray(pixels).save(tmp_path / "black.tif")
    content = (tmp_path / "black.tif").read_bytes()
    # The photometric tag (262), a 16-bit number: 1, black is zero, becomes 0, white is zero.
    tag = b"\x06\x01\x03\x00\x01\x00\x00\x00"
    assert content.count(tag + b"\x01\x00") == 1
    (tmp_path / "white.tif").write_bytes(content.replace(tag + b"\x01\x00", tag + b"\x00\x00"))
    black = read(tmp_path, tmp_path / "black.tif")[0]
    np.testing.assert_allclose(read(tmp_path, tmp_path / "white.tif")[0], -black, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_bit_depth_go_by_percentiles(tmp_path, dtype):
    pixels = (np.random.default_rng(0).standard_normal((32, 32)) * 1000).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    low, high = np.percentile(pixels, (0.5, 99.5))
    image = read(tmp_path, tmp_path / "a.tif")[0][0].numpy()
    np.testing.assert_allclose(image, np.clip((pixels - low) / (high - low), 0, 1) * 2 - 1, atol=4e-5)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_broken_pictures_are_errors_that_name_the_file(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise((64, 64))).save(whole)
    broken = tmp_path / f"broken.{suffix}"
    for content in (whole.read_bytes()[:400], b"text" * 100):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=rf"broken\.{suffix}: (cannot be read as an image|is damaged or truncated)"):
            read(tmp_path, broken)


def test_a_window_of_the_files_own_is_an_error_for_a_picture(tmp_path):
    Image.fromarray(noise((32, 32))).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has no window of its own; set window"):
        read(tmp_path, tmp_path / "a.png", normalize="window")
