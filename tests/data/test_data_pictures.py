"""16-bit pictures, formats other than PNG and JPEG, and files whose name and content disagree."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vmddpm.data import DataConfig, DataError
from vmddpm.data.readers import read_content, read_file
from vmddpm.data.remarks import summary
from vmddpm.data.tally import Tally

RAMP = (np.add.outer(np.arange(64), np.arange(64)) * 32).astype(np.uint16)  # 0 ... 4032
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def planes(path, **options):
    return list(read_file(path, DataConfig(**options)))


def plane(path, **options):
    (one,) = planes(path, **options)
    return one


def png(path, samples, colour_type, significant=None):
    """A PNG with 16 bits per sample, written byte by byte."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    if significant:
        content += chunk(b"sBIT", bytes(significant))
    path.write_bytes(content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_twelve_bits_in_sixteen_are_detected_and_reported(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    found = plane(tmp_path / "a.png")
    np.testing.assert_array_equal(found.pixels, RAMP)
    assert (found.black, found.white) == (0, 4095)
    tally = Tally("a.png", DataConfig(size=32))
    assert len(list(tally.kept([found]))) == 1
    note = "16-bit file whose values fit into 12 bits: read as 0 ... 4095, not 0 ... 65535"
    assert summary(tally.remarks()) == [f"note: 1 slice of 1 file, {note} (a.png)"]


@pytest.mark.parametrize("options", [{"normalize": "percentile"}, {"window": (2000, 100)}])
def test_a_requested_range_needs_no_note(tmp_path, options):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert not plane(tmp_path / "a.png", **options).note


@pytest.mark.parametrize("top", [4096, 65535])
def test_sixteen_bits_stay_sixteen(tmp_path, top):
    pixels = RAMP.copy()
    pixels[0, 0] = top
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (plane(tmp_path / "a.png").white, plane(tmp_path / "a.png").note) == (65535, "")


@pytest.mark.parametrize(
    ("bits", "shift", "white"), [(14, 2, 16383), (12, 0, 4095), (10, 0, 4095), (14, 4, 65535), (16, 0, 65535)]
)
def test_significant_bits_of_a_png(tmp_path, bits, shift, white):
    """Values up to 2^sBIT - 1 were stored unscaled; larger ones were scaled up, as the PNG standard requires."""
    found = plane(png(tmp_path / "a.png", RAMP << shift, 0, [bits]))
    np.testing.assert_array_equal(found.pixels, RAMP << shift)
    assert found.white == white


@pytest.mark.parametrize(("colour_type", "samples"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("shift", [0, 4])
def test_deep_colour_and_transparency_keep_their_bits(tmp_path, colour_type, samples, shift):
    values = np.random.default_rng(0).integers(0, 4096, (24, 32, samples)).astype(np.uint16) << shift
    if samples in (2, 4):
        values[..., -1] = 65535
    found = plane(png(tmp_path / "a.png", values, colour_type))
    colours = values[..., : 3 if samples > 2 else 1]
    np.testing.assert_array_equal(found.pixels, colours if samples > 2 else colours[..., 0])
    assert found.white == (4095 if shift == 0 else 65535)


def test_transparency_everywhere_is_none(tmp_path):
    """A picture with an empty alpha channel is not all black."""
    rgba = np.concatenate([COLOURS, np.zeros((24, 32, 1), np.uint8)], 2)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(plane(tmp_path / "a.png").pixels, COLOURS)


def test_an_x_ray_stored_in_rgba_is_grey(tmp_path):
    grey = COLOURS[..., 0]
    Image.fromarray(np.stack([grey, grey, grey, np.full_like(grey, 255)], 2)).save(tmp_path / "a.png")
    config = DataConfig(size=24, min_foreground=0)
    ((_, image),) = Tally("a", config).kept(read_file(tmp_path / "a.png", config))
    np.testing.assert_allclose((image[0] + 1) * 127.5, grey[:, 4:28], atol=2e-3)


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "webp", "jp2", "gif", "png", "pnm"])
def test_formats_that_pillow_reads(tmp_path, suffix):
    options = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}.get(suffix, {})
    Image.fromarray(COLOURS).save(tmp_path / f"a.{suffix}", **options)
    found = plane(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as reference:
        np.testing.assert_array_equal(found.pixels, np.asarray(reference.convert("RGB")))
    if suffix != "gif":
        np.testing.assert_array_equal(found.pixels, COLOURS)
    assert (found.black, found.white) == (0, 255)


@pytest.mark.parametrize(("top", "form"), [(255, "B"), (65535, ">H"), (4095, ">H")])
def test_pgm_of_any_largest_value(tmp_path, top, form):
    pixels = (RAMP.astype(int) * top // 4032).astype(form)
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 %d\n" % top + pixels.tobytes())
    found = plane(tmp_path / "a.pgm")
    np.testing.assert_allclose(found.pixels / found.white, pixels / top, atol=1e-4)
    assert not found.note


def test_jpeg_2000_of_sixteen_bits(tmp_path):
    Image.fromarray(RAMP * 16).save(tmp_path / "a.jp2", irreversible=False)
    found = plane(tmp_path / "a.jp2")
    np.testing.assert_array_equal(found.pixels, RAMP * 16)
    assert found.white == 65535


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_every_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.fromarray(np.full((16, 16), 60 * n, np.uint8)) for n in range(1, 4)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=40, **options)
    found = planes(tmp_path / f"a.{suffix}")
    assert [one.frame for one in found] == [0, 1, 2]
    assert [round(float(one.pixels.mean())) for one in found] == [60, 120, 180]


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a.nii.gz", "a", "a.tif"])
def test_a_git_lfs_pointer_is_named_as_one(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError, match=r"is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"):
        planes(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".nii", ".npy"])
def test_dicom_under_another_name_is_recognised(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    with pytest.raises(DataError, match=rf"is a DICOM file with the suffix \{suffix}; rename it to \.dcm"):
        planes(tmp_path / f"a{suffix}")


def test_a_tiff_file_under_another_pictures_name_is_read_as_tiff(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    np.testing.assert_array_equal(plane(tmp_path / "a.png").pixels, COLOURS)


def test_sizes_are_checked_by_the_header(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(
        DataError, match=r"declares 20000 x 20000 pixels, more than max_pixels 67,108,864; .* raise max_pixels"
    ):
        planes(tmp_path / "a.png")
    Image.new("L", (2000, 2000)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="more than max_pixels 1,000,000"):
        planes(tmp_path / "b.png", max_pixels=10**6)
    limit = Image.MAX_IMAGE_PIXELS
    assert plane(tmp_path / "b.png").pixels.shape == (2000, 2000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_jpeg_2000_stream_cannot_be_larger_than_its_box_says(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.jp2")
    content = bytearray((tmp_path / "a.jp2").read_bytes())
    start = content.index(b"\xff\x4f\xff\x51") + 8
    content[start : start + 8] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "a.jp2").write_bytes(content)
    with pytest.raises(DataError, match="declares 60000 x 60000 pixels, more than max_pixels"):
        planes(tmp_path / "a.jp2")


def test_pictures_in_memory(tmp_path):
    content = io.BytesIO()
    Image.fromarray(COLOURS).save(content, "png")
    (found,) = read_content(content.getvalue(), "images/a.png", DataConfig())
    np.testing.assert_array_equal(found.pixels, COLOURS)
    with pytest.raises(DataError, match="is NIfTI inside an archive; unpack the archive"):
        list(read_content(b"content", "a.nii", DataConfig()))
