"""TIFF files of every sample type and layout, written by tifffile and Pillow, against the source arrays."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from vmddpm.data import DataConfig, DataError
from vmddpm.data.readers import read_file
from vmddpm.data.remarks import summary
from vmddpm.data.tally import Tally

RAMP = np.add.outer(np.arange(64), np.arange(64)) * 32  # 0 ... 4032


def planes(path, **options):
    return list(read_file(path, DataConfig(**options)))


def plane(path, **options):
    (one,) = planes(path, **options)
    return one


def write(tmp_path, array, name="a.tif", **options):
    tifffile.imwrite(tmp_path / name, array, **options)
    return tmp_path / name


TYPES = {
    "uint8": RAMP // 16, "uint16": RAMP * 16, "uint32": RAMP.astype(np.int64) << 20, "int8": RAMP // 32 - 63,
    "int16": RAMP * 16 - 32000, "int32": (RAMP - 2016) << 19, "uint64": RAMP.astype(np.int64) << 40,
    "float16": RAMP / 4032, "float32": RAMP / 7 - 100, "float64": 1e9 + RAMP / 1e3,
}  # fmt: skip
DEPTHS = {"uint8": 255, "uint16": 65535}


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_every_sample_type(tmp_path, dtype, photometric, compression):
    pixels = TYPES[dtype].astype(dtype)
    found = plane(write(tmp_path, pixels, photometric=photometric, compression=compression))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert not found.note
    limits = (0, DEPTHS[dtype]) if dtype in DEPTHS else tuple(np.percentile(pixels.astype(float), (0.5, 99.5)))
    expected = limits if photometric == "minisblack" else limits[::-1]
    np.testing.assert_allclose((found.black, found.white), expected, rtol=1e-6)


def test_small_differences_on_a_large_offset_are_kept(tmp_path):
    path = write(tmp_path, TYPES["float64"])
    config = DataConfig(size=64, min_foreground=0)
    ((_, image),) = Tally("a", config).kept(read_file(path, config))
    low, high = np.percentile(RAMP, (0.5, 99.5))
    np.testing.assert_allclose(image[0], np.clip((RAMP - low) / (high - low), 0, 1) * 2 - 1, atol=2e-4)


@pytest.mark.parametrize("layout", ["separate", "contig"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_and_pixels_of_colour(tmp_path, layout, dtype, compression):
    colours = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 40, 50), dtype, endpoint=True)
    stored = colours if layout == "separate" else np.moveaxis(colours, 0, -1)
    found = plane(write(tmp_path, stored, photometric="rgb", planarconfig=layout, compression=compression))
    np.testing.assert_array_equal(found.pixels, np.moveaxis(colours, 0, -1))
    assert (found.black, found.white) == (0, np.iinfo(dtype).max)


@pytest.mark.parametrize(("kind", "meaning"), [("unassalpha", "laid over black"), ("unspecified", "ignored")])
def test_a_fourth_sample(tmp_path, kind, meaning):
    samples = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    found = plane(write(tmp_path, samples, photometric="rgb", extrasamples=[kind]))
    alpha = samples[..., 3:] / 255 if meaning == "laid over black" else 1
    np.testing.assert_allclose(found.pixels, samples[..., :3] * alpha, atol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_the_orientation_is_that_of_the_picture(tmp_path, orientation, suffix):
    """Against the definition of where row 0 and column 0 of the file are (TIFF 6.0, page 36)."""
    stored = (RAMP[:20, :30] // 32).astype(np.uint8)
    picture = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T, 6: stored[::-1].T,
        7: stored[::-1, ::-1].T, 8: stored[:, ::-1].T,
    }[orientation]  # fmt: skip
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        Image.fromarray(stored).save(path, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(stored).save(path, exif=exif)
    np.testing.assert_array_equal(plane(path).pixels, picture)


def test_pages_stacks_thumbnails_and_masks(tmp_path):
    stack = np.stack([RAMP.astype(np.uint16) * 16, RAMP.T[::-1].astype(np.uint16) * 16, RAMP.astype(np.uint16) * 8])
    for name, options in (
        ("pages.tif", {}), ("imagej.tif", {"imagej": True}), ("big.tif", {"bigtiff": True}),
        ("motorola.tif", {"byteorder": ">"}),
        ("sgi.tif", {"volumetric": True, "tile": (16, 16, 16)}), ("ome.ome.tif", {}),
    ):  # fmt: skip
        found = planes(write(tmp_path, stack, name, photometric="minisblack", **options))
        assert [one.frame for one in found] == [0, 1, 2], name
        np.testing.assert_array_equal([one.pixels for one in found], stack)
    with tifffile.TiffWriter(tmp_path / "thumbs.tif") as tiff:
        tiff.write(stack[0], photometric="minisblack", metadata=None)
        tiff.write(stack[0, ::4, ::4], photometric="minisblack", subfiletype=1, metadata=None)
        tiff.write(stack[0] > 100, photometric="minisblack", subfiletype=4, metadata=None)
        tiff.write(stack[1], photometric="minisblack", metadata=None)
    found = planes(tmp_path / "thumbs.tif")
    np.testing.assert_array_equal([one.pixels for one in found], stack[:2])


def test_an_imagej_stack_behind_one_page(tmp_path):
    """ImageJ writes large stacks as one page and the number of images in its description."""
    stack = np.random.default_rng(0).integers(0, 60000, (5, 16, 20)).astype(">u2")
    text = b"ImageJ=1.53t\nimages=5\nslices=5\nloop=false\n\0"
    tags = [
        (256, 4, 20), (257, 4, 16), (258, 3, 16), (259, 3, 1), (262, 3, 1), (270, 2, None), (273, 4, None), (277, 3, 1),
        (278, 4, 16), (279, 4, 640),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    body = b""
    for tag, kind, value in tags:
        count = len(text) if tag == 270 else 1
        value = start if tag == 270 else start + len(text) + len(text) % 2 if tag == 273 else value
        body += struct.pack(">HHI", tag, kind, count) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    content = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + body + struct.pack(">I", 0) + text + b"\0" * (len(text) % 2)
    (tmp_path / "a.tif").write_bytes(content + stack.tobytes())
    found = planes(tmp_path / "a.tif")
    np.testing.assert_array_equal([one.pixels for one in found], stack)
    (tmp_path / "a.tif").write_bytes(content + stack.tobytes()[:-700])
    with pytest.raises(DataError, match="truncated"):
        planes(tmp_path / "a.tif")


def test_a_stack_behind_one_page(tmp_path):
    stack = np.stack([RAMP, RAMP + 1, RAMP[::-1]]).astype(np.uint16)
    path = write(tmp_path, stack, truncate=True, photometric="minisblack")
    np.testing.assert_array_equal([one.pixels for one in planes(path)], stack)


def test_the_shape_that_older_versions_of_tifffile_wrote(tmp_path):
    stack = np.stack([RAMP, RAMP[::-1]]).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in stack:
            tiff.write(page, photometric="minisblack", metadata=None, description="shape=(2, 64, 64)")
    np.testing.assert_array_equal([one.pixels for one in planes(tmp_path / "a.tif")], stack)
    content = write(tmp_path, stack, photometric="minisblack").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(b"64]}", b"64]{"))
    with pytest.raises(DataError, match=r"its ImageDescription \(270\) is damaged"):
        planes(tmp_path / "a.tif")


def test_palette_and_one_bit(tmp_path):
    indices = np.add.outer(np.arange(16), 16 * np.arange(16)).astype(np.uint8)
    table = np.random.default_rng(0).integers(0, 65536, (3, 256), np.uint16)
    found = plane(write(tmp_path, indices, photometric="palette", colormap=table))
    np.testing.assert_array_equal(found.pixels, np.moveaxis(table[:, indices], 0, -1))
    assert found.white == 65535
    bits = RAMP > 2000
    found = plane(write(tmp_path, bits, photometric="miniswhite"))
    np.testing.assert_array_equal(found.pixels, bits)
    assert (found.black, found.white) == (1, 0)


def test_jpeg_pages(tmp_path):
    smooth = np.stack([RAMP // 16, RAMP.T // 20, RAMP[::-1] // 16], -1).astype(np.uint8)
    path = write(tmp_path, smooth, photometric="rgb", compression="jpeg")
    assert np.abs(plane(path).pixels - smooth).mean() < 3


def test_twelve_bits_in_sixteen_are_reported(tmp_path):
    path = write(tmp_path, RAMP.astype(np.uint16))
    found = plane(path)
    assert (found.black, found.white) == (0, 4095)
    tally = Tally("a.tif", DataConfig(size=32))
    assert len(list(tally.kept(planes(path)))) == 1
    (line,) = summary(tally.remarks())
    assert "fit into 12 bits: read as 0 ... 4095, not 0 ... 65535" in line
    assert plane(path, normalize="percentile").white < 4032


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (
            np.zeros((8, 8, 4), np.uint8),
            {"photometric": "separated"},
            r"PhotometricInterpretation \(262\) is SEPARATED",
        ),
        (np.zeros((8, 8, 3), np.uint8), {"photometric": "cielab"}, r"PhotometricInterpretation \(262\) is CIELAB"),
        (np.zeros((8, 8, 3), np.uint8), {"photometric": "ycbcr"}, r"\(262\) is YCBCR without JPEG"),
        (np.zeros((8, 8), np.complex64), {}, r"SampleFormat \(339\) 6 with 64 bits is not supported"),
        (
            np.zeros((4, 8, 8), np.uint8),
            {"photometric": "minisblack", "planarconfig": "separate"},
            "has 4 samples per pixel",
        ),
    ],
)
def test_what_is_no_grey_or_rgb_picture_is_named(tmp_path, array, options, words):
    with pytest.raises(DataError, match=words):
        planes(write(tmp_path, array, **options))


def test_sizes_are_checked_before_pixels_are_decoded(tmp_path):
    path = write(tmp_path, np.zeros((64, 64), np.uint8))
    content = path.read_bytes()
    for tag in (256, 257):  # width and height
        at = content.index(struct.pack("<HHII", tag, 4, 1, 64))
        content = content[:at] + struct.pack("<HHII", tag, 4, 1, 60000) + content[at + 12 :]
    path.write_bytes(content)
    with pytest.raises(DataError, match="60000 x 60000 pixels, more than max_pixels"):
        planes(path)
    with pytest.raises(DataError, match="is damaged or truncated: its header declares 3,600,000,000 bytes"):
        planes(path, max_pixels=10**10, max_voxels=10**10)


@pytest.mark.parametrize(
    ("compression", "marker", "at"), [("jpeg", b"\xff\xc0", 5), ("jpeg2000", b"\xff\x4f\xff\x51", 8)]
)
def test_a_compressed_stream_cannot_be_larger_than_the_limit(tmp_path, compression, marker, at):
    path = write(tmp_path, (RAMP // 16).astype(np.uint8), compression=compression)
    content = bytearray(path.read_bytes())
    start, width = content.index(marker) + at, 4 if at == 8 else 2
    content[start : start + 2 * width] = (60000).to_bytes(width, "big") * 2
    path.write_bytes(content)
    with pytest.raises(DataError, match="declares 60000 x 60000 pixels, more than max_pixels"):
        planes(path)


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib"}])
def test_pages_that_are_cut_off_are_missed(tmp_path, options):
    order = {"bigtiff": "bigtiff" in options, "byteorder": options.get("byteorder")}
    with tifffile.TiffWriter(tmp_path / "a.tif", **order) as tiff:
        for _ in range(3):
            tiff.write(RAMP.astype(np.uint16), metadata=None, compression=options.get("compression"))
    assert len(planes(tmp_path / "a.tif")) == 3
    content = (tmp_path / "a.tif").read_bytes()
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        (tmp_path / "a.tif").write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError):
            planes(tmp_path / "a.tif")
