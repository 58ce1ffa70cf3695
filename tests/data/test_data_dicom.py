"""DICOM files: values, windows, polarity, frames, colour, against pydicom's raw arrays and closed forms."""

import io
import shutil

import numpy as np
import pydicom
import pytest
from made import item, linear, make_dicom, read
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels
from pydicom.uid import JPEGLSLossless

from vmddpm.data import DataError


def sample(name):
    # Without download=False, pydicom would look for missing files on the network.
    return get_testdata_file(name, download=False)


CT = sample("CT_small.dcm")
FOLDER = sample("MR_small.dcm").rsplit("/", 1)[0] + "/dicomdirtests"
CR = f"{FOLDER}/77654033/CR1/6154"


def test_a_real_ct_file_is_in_hounsfield_units(tmp_path):
    dataset = read(tmp_path, CT, window=(40.0, 400.0))
    raw = pydicom.dcmread(CT)
    units = raw.pixel_array.astype(float) * raw.RescaleSlope + raw.RescaleIntercept
    assert (units.min(), units.max()) == (-896, 1167)
    assert len(dataset) == 1
    assert dataset[0].shape == (1, 128, 128)
    assert (dataset.slices[0].axis, dataset.slices[0].index, dataset.slices[0].frame) == ("stored", 0, 0)
    np.testing.assert_allclose(dataset[0][0].numpy(), linear(units, -160, 240), atol=2e-5)


def test_a_file_without_a_window_goes_by_its_percentiles(tmp_path):
    raw = pydicom.dcmread(CT)
    assert "WindowCenter" not in raw
    units = raw.pixel_array - 1024.0
    expected = linear(units, *np.percentile(units, (0.5, 99.5)))
    np.testing.assert_allclose(read(tmp_path, CT)[0][0].numpy(), expected, atol=2e-5)


def test_a_window_of_its_own_is_used_as_the_standard_says(tmp_path):
    path = sample("MR_small.dcm")
    raw = pydicom.dcmread(path)
    assert (raw.WindowCenter, raw.WindowWidth) == (600, 1600)
    # PS3.3 C.11.2.1.2.1: black up to c - 0.5 - (w - 1) / 2, white above c - 0.5 + (w - 1) / 2.
    expected = linear(raw.pixel_array.astype(float), 599.5 - 1599 / 2, 599.5 + 1599 / 2)
    np.testing.assert_allclose(read(tmp_path, path, size=64)[0][0].numpy(), expected, atol=2e-5)


def test_the_first_of_several_windows_is_used(tmp_path):
    path = sample("examples_overlay.dcm")
    raw = pydicom.dcmread(path)
    assert list(raw.WindowCenter) == [450, 200]
    middle = raw.pixel_array[:, 92:392].astype(float)
    expected = linear(middle, 449.5 - 789 / 2, 449.5 + 789 / 2)
    np.testing.assert_allclose(read(tmp_path, path, size=300)[0][0].numpy(), expected, atol=2e-5)


def test_a_real_monochrome1_file_is_inverted_after_its_window(tmp_path):
    raw = pydicom.dcmread(CR)
    assert raw.PhotometricInterpretation == "MONOCHROME1"
    values = raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    image = read(tmp_path, CR, size=16)[0][0].numpy()
    expected = -linear(values, 1599.5 - 2799 / 2, 1599.5 + 2799 / 2)
    np.testing.assert_allclose(image, expected, atol=2e-5)
    assert np.corrcoef(image.ravel(), raw.pixel_array.ravel())[0, 1] == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"normalize": "percentile"}, {"normalize": "full"}, {"window": (1800, 400)}]
)
def test_monochrome1_is_inverted_under_every_normalisation(tmp_path, options):
    raw = pydicom.dcmread(CR).pixel_array
    image = read(tmp_path, CR, size=16, **options)[0][0].numpy()
    assert image.flat[raw.argmin()] == 1
    assert np.corrcoef(image.ravel(), raw.ravel())[0, 1] < -0.9


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        ("LINEAR_EXACT", lambda x: np.clip((x - 300) / 400, 0, 1)),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 500) / 400))),
    ],
)
def test_other_window_functions_of_the_standard(tmp_path, function, shown):
    stored = np.arange(1024).reshape(32, 32)
    path = make_dicom(tmp_path / "a.dcm", stored, WindowCenter=500, WindowWidth=400, VOILUTFunction=function)
    np.testing.assert_allclose(read(tmp_path, path, size=32)[0][0].numpy(), 2 * shown(stored) - 1, atol=2e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_voi_table_is_applied_before_the_polarity(tmp_path, photometric):
    stored = np.arange(400).reshape(20, 20)
    table = (np.sqrt(np.arange(256)) * 16).astype(np.uint16)
    lut = item(LUTDescriptor=[256, 100, 12], LUTData=table.tolist())
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    path = make_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[lut], PhotometricInterpretation=photometric)
    shown = table[np.clip(stored - 100, 0, 255)] / 4095 * 2 - 1
    sign = -1 if photometric == "MONOCHROME1" else 1
    np.testing.assert_allclose(read(tmp_path, path, size=20)[0][0].numpy(), sign * shown, atol=2e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_background_and_leaves_the_percentiles_alone(tmp_path, photometric):
    stored = np.random.default_rng(0).integers(1000, 2000, (24, 24))
    stored[:6], stored[-6:] = 63, 60
    path = make_dicom(
        tmp_path / "a.dcm",
        stored,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=63,
        PixelPaddingRangeLimit=60,
    )
    image = read(tmp_path, path, size=24)[0][0].numpy()
    inside = stored[6:-6]
    expected = linear(inside, *np.percentile(inside, (0.5, 99.5)))
    sign = -1 if photometric == "MONOCHROME1" else 1
    np.testing.assert_allclose(image[6:-6], sign * expected, atol=2e-5)
    assert (image[:6] == -1).all()
    assert (image[-6:] == -1).all()


def test_every_frame_of_a_real_colour_series_is_read(tmp_path):
    path = sample("examples_ybr_color.dcm")
    dataset = read(tmp_path, path, size=240)
    assert [info.frame for info in dataset.slices] == list(range(30))
    for frame, rgb in enumerate(iter_pixels(path)):
        expected = np.asarray(Image.fromarray(rgb).convert("L"))[:, 40:280] / 127.5 - 1
        np.testing.assert_allclose(dataset[frame][0].numpy(), expected, atol=0.51 / 127.5)


def test_the_frames_of_a_grey_series_share_their_percentiles(tmp_path):
    raw = np.random.default_rng(0).integers(0, 4000, (5, 10, 10)) * np.arange(1, 6)[:, None, None]
    dataset = read(tmp_path, make_dicom(tmp_path / "a.dcm", raw, NumberOfFrames=5), size=10)
    expected = linear(raw, *np.percentile(raw, (0.5, 99.5)))
    images = np.stack([image[0].numpy() for image in (dataset[i] for i in range(len(dataset)))])
    np.testing.assert_allclose(images, expected, atol=1e-4)


def test_enhanced_frames_have_their_own_slope_and_window(tmp_path):
    stored = np.random.default_rng(0).integers(0, 1000, (2, 16, 16))
    frames = [
        item(
            PixelValueTransformationSequence=[
                item(RescaleSlope=slope, RescaleIntercept=-100, RescaleType="US")
            ],
            FrameVOILUTSequence=[item(WindowCenter=centre + 0.5, WindowWidth=401)],
        )
        for slope, centre in ((1, 400), (2, 800))
    ]
    path = make_dicom(
        tmp_path / "a.dcm",
        stored,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[item(PixelSpacing=[2, 1])])],
        PerFrameFunctionalGroupsSequence=frames,
    )
    dataset = read(tmp_path, path, size=16)
    assert [info.frame for info in dataset.slices] == [0, 1]
    for frame, (slope, centre) in enumerate(((1, 400), (2, 800))):
        # Pixels twice as high as wide: 8 of the 16 rows make a square with all columns.
        square = linear(stored[frame, 4:12] * slope - 100.0, centre - 200, centre + 200).astype(np.float32)
        expected = Image.fromarray(square).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(dataset[frame][0].numpy(), np.asarray(expected), atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_real_palette_image_is_in_colour(tmp_path, channels):
    path = sample("examples_palette.dcm")
    raw = pydicom.dcmread(path)
    rgb = apply_color_lut(raw.pixel_array, raw)[:, 225:575]
    rgb = rgb / np.iinfo(rgb.dtype).max * 2 - 1
    image = read(tmp_path, path, size=350, channels=channels)[0].numpy()
    expected = np.moveaxis(rgb, 2, 0) if channels == 3 else (rgb @ (0.299, 0.587, 0.114))[None]
    np.testing.assert_allclose(image, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"])
def test_the_encoding_does_not_matter(tmp_path, name):
    assert (read(tmp_path, sample(name))[0] == read(tmp_path, sample("MR_small.dcm"))[0]).all()


def test_files_without_a_suffix_are_read_and_text_next_to_them_is_not(tmp_path):
    shutil.copytree(f"{FOLDER}/98892003", tmp_path / "patient")
    (tmp_path / "patient" / "README").write_text("not an image")
    dataset = read(tmp_path, tmp_path / "patient", size=16)
    assert len(dataset) == 17
    for i in (0, 16):
        raw = pydicom.dcmread(dataset.slices[i].path)
        centre, width = float(raw.WindowCenter), float(raw.WindowWidth)
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        np.testing.assert_allclose(dataset[i][0].numpy(), linear(raw.pixel_array, low, high), atol=1e-4)


@pytest.mark.parametrize("name", ["scan", "1.2.840.113619.2.55", "scan.ima", "scan.dcm"])
def test_a_file_without_the_dicom_mark_is_read_for_its_pixels(tmp_path, name):
    whole = sample("MR_small_implicit.dcm")
    raw = pydicom.dcmread(whole)
    bare = io.BytesIO()
    pydicom.dcmwrite(bare, Dataset(raw), implicit_vr=True, little_endian=True, enforce_file_format=False)
    (tmp_path / name).write_bytes(bare.getvalue())
    assert pydicom.dcmread(tmp_path / name, force=True).preamble is None
    assert (read(tmp_path, tmp_path / name)[0] == read(tmp_path, whole)[0]).all()


def test_a_dicom_file_of_any_suffix_is_known_by_its_mark(tmp_path):
    shutil.copy(CT, tmp_path / "scan.v2")
    assert len(read(tmp_path, tmp_path / "scan.v2")) == 1


def test_a_text_file_named_dcm_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "notes.dcm"
    path.write_text("These are notes.\n" * 50)
    with pytest.raises(DataError, match=r"notes\.dcm: (is not a DICOM file|cannot be read as DICOM)"):
        read(tmp_path, path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "dicomdirtests/DICOMDIR",
            r"DICOMDIR: no image is left .*not an image according to its SOP class, Media Storage",
        ),
        ("test-SR.dcm", r"test-SR\.dcm: no image is left .*not an image according to its SOP class, Comprehensive SR"),
        ("rtdose.dcm", r"rtdose\.dcm: no image is left .*not an image according to its SOP class, RT Dose"),
        ("MR_truncated.dcm", r"MR_truncated\.dcm: is truncated: it has 8,130 bytes of pixels and needs 8,192; fetch"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_reason(tmp_path, name, reason):
    with pytest.raises(DataError, match=f"(?s){reason}"):
        read(tmp_path, FOLDER.rsplit("/", 1)[0] + "/" + name)


@pytest.mark.skipif(get_decoder(JPEGLSLossless).is_available, reason="a decoder of JPEG-LS is installed")
def test_a_compression_without_a_decoder_is_an_error_that_says_what_to_install(tmp_path):
    reason = r"its pixels are compressed as JPEG-LS Lossless.* no decoder is installed; `pip install \"\.\[dicom\]\"`"
    with pytest.raises(DataError, match=reason):
        read(tmp_path, sample("MR_small_jpeg_ls_lossless.dcm"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("blob", b"\0\1\2" * 300, r"blob: (is not a DICOM file|cannot be read as DICOM)"),
        ("empty", b"", "empty: is empty"),
        ("scan.xyz", b"ObjectType = Image\n", r"scan\.xyz: has the suffix \.xyz, which is not one of \.bmp"),
    ],
)
def test_unknown_files_are_never_passed_over(tmp_path, name, content, reason):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(tmp_path, folder)
