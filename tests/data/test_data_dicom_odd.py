"""DICOM files as found in archives: attributes that are empty, of the wrong representation or against the standard.
Each file is made by arithmetic, and is read correctly or refused with a message that names the attribute."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made import item, linear, make_dicom, read
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTDoseStorage,
    SegmentationStorage,
)

from vmddpm.cli import main
from vmddpm.data import DataConfig, DataError, SliceDataset
from vmddpm.data.readers import read_file
from vmddpm.data.remarks import summary
from vmddpm.data.transforms import prepare

RAMP = (np.add.outer(np.arange(64), np.arange(64)) * 32).astype(np.uint16)  # 0 ... 4032


def image(tmp_path, path, **options):
    return read(tmp_path, path, size=64, **options)[0][0].numpy()


def raw(path, vr, keyword, value):
    """Write an attribute unchanged, without pydicom's checks."""
    dataset = pydicom.dcmread(path)
    tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
    content = value.encode() if isinstance(value, str) else struct.pack("<H" if vr == "US" else "<h", value)
    content += b" " * (len(content) % 2)
    dataset[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)
    dataset.save_as(path)
    return path


def percentiles(values):
    return linear(values, *np.percentile(values, (0.5, 99.5)))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("rubbish", [0, 11])
def test_values_in_the_upper_bits(tmp_path, signed, rubbish):
    """HighBit above BitsStored - 1, with the bits below used or unused."""
    values = RAMP.astype(np.int32) - (2016 if signed else 0)
    path = make_dicom(tmp_path / "a.dcm", (values * 16 + rubbish).astype(np.uint16), BitsStored=12, HighBit=15,
                      PixelRepresentation=signed)  # fmt: skip
    np.testing.assert_allclose(image(tmp_path, path), percentiles(values), atol=2e-5)


def test_bits_above_the_values_are_no_part_of_them(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP | 0xA000, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(image(tmp_path, path), percentiles(RAMP), atol=2e-5)


@pytest.mark.parametrize(("stored", "high", "allocated"), [(12, 10, 16), (12, 16, 16), (20, 19, 16), (0, 15, 16)])
def test_bits_that_contradict_each_other_are_named(tmp_path, stored, high, allocated):
    path = make_dicom(tmp_path / "a.dcm", RAMP, BitsStored=stored, HighBit=high, BitsAllocated=allocated)
    with pytest.raises(DataError, match=r"Bits Stored \(0028,0101\) .* contradict each other; correct them"):
        image(tmp_path, path)


@pytest.mark.parametrize("function", ["", "linear ", None])
def test_an_empty_window_function_is_linear(tmp_path, function):
    path = make_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=4000, VOILUTFunction=function)
    np.testing.assert_allclose(image(tmp_path, path), linear(RAMP.astype(float), 0, 3999), atol=2e-5)


def test_a_window_narrower_than_a_step_is_read_as_exact(tmp_path):
    path = make_dicom(
        tmp_path / "a.dcm", RAMP, WindowCenter=0.5, WindowWidth=0.9, RescaleSlope=0.001, RescaleIntercept=0
    )
    dataset = read(tmp_path, path, size=64)
    np.testing.assert_allclose(dataset[0][0].numpy(), linear(RAMP / 1000, 0.05, 0.95), atol=2e-5)
    assert any("Window Width (0028,1051) is below 1" in line for line in summary(dataset.remarks))


def test_a_window_of_width_one_is_a_step(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000.5, WindowWidth=1)
    np.testing.assert_array_equal(image(tmp_path, path), np.where(RAMP > 2000, 1, -1))


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "words"),
    [
        ("WindowWidth", "DS", "0", "is 0, not above 0"),
        ("WindowWidth", "DS", "-400", "is -400, not above 0"),
        ("WindowWidth", "DS", "NaN", "not finite"),
        ("WindowCenter", "DS", "wide", "not a number"),
        ("WindowWidth", "DS", "1e400", "not finite"),
    ],
)
def test_an_invalid_window_is_ignored_and_reported(tmp_path, keyword, vr, value, words):
    path = raw(make_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=40, WindowWidth=400), vr, keyword, value)
    dataset = read(tmp_path, path, size=64)
    np.testing.assert_allclose(dataset[0][0].numpy(), percentiles(RAMP), atol=2e-5)
    (line,) = summary(dataset.remarks)
    assert line.startswith("note: 1 slice of 1 file, ")
    assert words in line
    assert "the window is ignored" in line
    with pytest.raises(DataError, match=f"{words}.*set window to"):
        read(tmp_path, path, normalize="window")


def test_an_unknown_window_function_is_reported(tmp_path):
    path = raw(make_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=40, WindowWidth=400), "CS", "VOILUTFunction", "CURVE")
    dataset = read(tmp_path, path, size=64)
    np.testing.assert_allclose(dataset[0][0].numpy(), percentiles(RAMP), atol=2e-5)
    assert "VOI LUT Function (0028,1056) is 'CURVE'" in summary(dataset.remarks)[0]


@pytest.mark.parametrize("value", ["", None])
def test_empty_windows_are_none(tmp_path, value):
    path = make_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=value, WindowWidth=value)
    dataset = read(tmp_path, path, size=64)
    np.testing.assert_allclose(dataset[0][0].numpy(), percentiles(RAMP), atol=2e-5)
    assert not dataset.remarks


@pytest.mark.parametrize(("vr", "value", "limit"), [("US", 63536, None), ("SS", -2000, None), ("US", 63536, 63530)])
def test_padding_has_the_sign_of_the_pixels(tmp_path, vr, value, limit):
    values = np.where(RAMP < 300, -2000, RAMP.astype(np.int32))
    path = make_dicom(tmp_path / "a.dcm", values.astype(np.int16).view(np.uint16), PixelRepresentation=1)
    raw(path, vr, "PixelPaddingValue", value)
    if limit:
        raw(path, vr, "PixelPaddingRangeLimit", limit)
    inside = RAMP[RAMP >= 300]
    expected = np.where(RAMP < 300, -1, linear(RAMP.astype(float), *np.percentile(inside, (0.5, 99.5))))
    np.testing.assert_allclose(image(tmp_path, path), expected, atol=2e-5)


def test_padding_of_unsigned_pixels_written_as_signed(tmp_path):
    values = np.where(RAMP < 300, 65535, RAMP).astype(np.uint16)
    path = raw(make_dicom(tmp_path / "a.dcm", values), "SS", "PixelPaddingValue", -1)
    assert (image(tmp_path, path)[RAMP < 300] == -1).all()
    assert (image(tmp_path, path)[RAMP > 3000] > 0).all()


def with_table(path, kind, descriptor, data, vr):
    """A modality or VOI table whose descriptor is written with representation `vr`."""
    dataset = pydicom.dcmread(path)
    lut = item(LUTData=data)
    lut["LUTData"].VR = "OW" if isinstance(data, bytes) else "US"
    lut[0x00283002] = DataElement(0x00283002, vr, descriptor)
    setattr(dataset, f"{kind}LUTSequence", [lut])
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(("signed", "padding"), [(1, -32768), (0, 63536)])
def test_padding_beyond_the_stored_bits_is_padding(tmp_path, signed, padding):
    """Twelve bits are stored and the padding value has sixteen; its lower bits are an ordinary value's."""
    inside = RAMP.astype(np.int32) // 2 - (1000 if signed else 0)
    words = np.where(RAMP < 300, padding, inside).astype(np.int32).astype(np.uint16)
    path = make_dicom(tmp_path / "a.dcm", words, BitsStored=12, HighBit=11, PixelRepresentation=signed)
    raw(path, "SS" if signed else "US", "PixelPaddingValue", padding)
    shown = linear(inside.astype(float), *np.percentile(inside[RAMP >= 300], (0.5, 99.5)))
    np.testing.assert_allclose(image(tmp_path, path), np.where(RAMP < 300, -1, shown), atol=2e-5)


def test_a_high_bit_that_contradicts_the_values_is_named(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP | 1, BitsStored=12, HighBit=12)
    with pytest.raises(DataError, match=r"High Bit \(0028,0102\) is 12 .* values are in the lower bits; set it to 11"):
        image(tmp_path, path)


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("packing", ["words", "values"])
def test_a_modality_table_whose_first_value_is_negative(tmp_path, vr, packing):
    values = RAMP.astype(np.int32) - 2000
    table = np.arange(4096, dtype=np.uint16) * 7
    path = make_dicom(tmp_path / "a.dcm", values.astype(np.int16).view(np.uint16), PixelRepresentation=1)
    first = -2000 if vr == "SS" else 2**16 - 2000
    data = table.astype("<u2").tobytes() if packing == "words" else table.tolist()
    with_table(path, "Modality", [4096, first, 16], data, vr)
    np.testing.assert_allclose(image(tmp_path, path), percentiles(RAMP * 7.0), atol=2e-5)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_voi_table_of_rescaled_values_below_zero(tmp_path, vr):
    table = np.arange(4096, dtype=np.uint16) * 8
    path = make_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=1, RescaleIntercept=-1024)
    with_table(path, "VOI", [4096, -1024 if vr == "SS" else 2**16 - 1024, 15], table.tolist(), vr)
    np.testing.assert_allclose(image(tmp_path, path), linear(RAMP * 8.0, 0, 32767), atol=2e-5)


def test_a_table_that_is_cut_short_is_named(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    with_table(path, "VOI", [4096, 0, 16], list(range(100)), "US")
    with pytest.raises(DataError, match=r"LUT Data \(0028,3006\) holds 100 entries, but .*0028,3002\) gives 4096"):
        image(tmp_path, path)
    with_table(path, "VOI", [4096, 0, 3], list(range(4096)), "US")
    with pytest.raises(DataError, match=r"LUT Descriptor \(0028,3002\) gives 3 bits per entry"):
        image(tmp_path, path)


def test_a_frame_without_a_window_does_not_take_that_of_another(tmp_path):
    stored = np.stack([RAMP, RAMP])
    groups = [item(FrameVOILUTSequence=[item(WindowCenter=1000.5, WindowWidth=401)]), item()]
    path = make_dicom(tmp_path / "a.dcm", stored, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups)
    dataset = read(tmp_path, path, size=64)
    np.testing.assert_allclose(dataset[0][0].numpy(), linear(RAMP.astype(float), 800, 1200), atol=2e-5)
    np.testing.assert_allclose(dataset[1][0].numpy(), percentiles(stored)[1], atol=2e-5)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("shift", "bits"), [(8, 16), (0, 16), (0, 8)])
def test_palettes_of_both_byte_orders_and_depths(tmp_path, big_endian, shift, bits):
    """Entries of 16 bits, and entries of 8 bits in words of 16."""
    indices = np.add.outer(np.arange(16), 16 * np.arange(16)).astype(np.uint16)
    tables = [np.random.default_rng(n).integers(0, 256, 256).astype(np.uint16) for n in range(3)]
    for table in tables:
        table[0] = 255
    order = ">u2" if big_endian else "<u2"
    path = make_dicom(tmp_path / "a.dcm", indices, PhotometricInterpretation="PALETTE COLOR")
    dataset = pydicom.dcmread(path)
    for colour, table in zip(("Red", "Green", "Blue"), tables):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        dataset[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{colour}PaletteColorLookupTableData", (table << shift).astype(order).tobytes())
    if big_endian:
        dataset.PixelData = indices.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    written = Dataset(dataset)  # a new Dataset, without the old byte order
    written.file_meta = dataset.file_meta
    pydicom.dcmwrite(path, written, little_endian=not big_endian, implicit_vr=False, enforce_file_format=True)
    shown = read(tmp_path, path, size=16, channels=3)[0].numpy()
    expected = np.stack([table[indices] for table in tables]) / 255 * 2 - 1
    np.testing.assert_allclose(shown, expected, atol=2e-5 if shift == 0 else 9e-3)  # 65280 is not 65535


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "PixelSpacing"])
def test_empty_numbers_are_none(tmp_path, keyword):
    path = make_dicom(tmp_path / "a.dcm", RAMP, **{keyword: None})
    np.testing.assert_allclose(image(tmp_path, path), percentiles(RAMP), atol=2e-5)


def test_a_pixel_spacing_of_one_value_means_squares(tmp_path):
    path = raw(make_dicom(tmp_path / "a.dcm", RAMP), "DS", "PixelSpacing", "0.5")
    np.testing.assert_allclose(image(tmp_path, path), percentiles(RAMP), atol=2e-5)


def test_an_intercept_without_a_slope_counts(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP, RescaleIntercept=-1000)
    np.testing.assert_allclose(image(tmp_path, path, window=(0, 2000)), linear(RAMP - 1000.0, -1000, 1000), atol=4e-5)


@pytest.mark.parametrize(
    ("value", "words"), [("steep", "is 'steep', not a number"), ("0", "is 0, which makes all pixels")]
)
def test_an_invalid_slope_is_named(tmp_path, value, words):
    path = raw(make_dicom(tmp_path / "a.dcm", RAMP, RescaleIntercept=0), "DS", "RescaleSlope", value)
    with pytest.raises(DataError, match=rf"Rescale Slope \(0028,1053\) {words}.*; correct it in the file"):
        image(tmp_path, path)


@pytest.mark.parametrize(("keyword", "value", "words"), [
    ("RescaleSlope", "1e38", r"Rescale Slope \(0028,1053\) is 1e\+38, which takes the pixels out of"),
    ("RescaleSlope", "-1e300", r"Rescale Slope \(0028,1053\) is -1e\+300, which takes the pixels out of"),
    ("RescaleSlope", "1e-300", r"Rescale Slope \(0028,1053\) is 1e-300, which takes the pixels out of"),
    ("RescaleIntercept", "1e30", r"Rescale Intercept \(0028,1052\) is 1e\+30, so large that pixel differences are"),
    ("RescaleIntercept", "-1e300", r"Rescale Intercept \(0028,1052\) is -1e\+300, so large that pixel differences are"),
])  # fmt: skip
@pytest.mark.parametrize("by", ["file", "series"])
def test_a_rescaling_beyond_floating_point_is_named(tmp_path, keyword, value, words, by):
    path = make_dicom(tmp_path / "a.dcm", RAMP, SeriesInstanceUID="1.2.3", **{keyword: value})
    with pytest.raises(DataError, match=f"{words}.*; correct it in the file"):
        image(tmp_path, path, normalize_by=by)


@pytest.mark.parametrize("value", ["1e30", "1e-30"])
def test_a_rescaling_far_from_one_is_one(tmp_path, value):
    path = make_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=value)
    np.testing.assert_allclose(image(tmp_path, path), percentiles(RAMP), atol=4e-5)


@pytest.mark.parametrize("value", ["1e300", "3e38", "1e-300"])
def test_windows_far_from_the_pixels_make_no_nan(tmp_path, value):
    path = make_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=value, WindowWidth=value)
    (plane,) = read_file(path, DataConfig())
    shown = prepare(plane.pixels, plane.black, plane.white, DataConfig(size=64))[0]
    with np.errstate(invalid="ignore"):
        expected = np.clip((RAMP.astype(np.longdouble) - plane.black) / (plane.white - plane.black), 0, 1) * 2 - 1
    np.testing.assert_allclose(shown, expected.astype(np.float32), atol=1e-6)


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"])
def test_the_spacing_of_pixels_by_each_of_its_attributes(tmp_path, keyword):
    (plane,) = read_file(make_dicom(tmp_path / "a.dcm", RAMP, **{keyword: [0.2, 0.1]}), DataConfig())
    assert plane.spacing == (0.2, 0.1)


@pytest.mark.parametrize("frames", [None, 1, 2])
def test_frames_beyond_the_number_of_frames_are_left_out_and_reported(tmp_path, frames):
    stored = np.stack([RAMP, RAMP[::-1], RAMP])
    path = make_dicom(tmp_path / "a.dcm", stored, NumberOfFrames=3)
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = frames
    dataset.save_as(path)
    read_back = read(tmp_path, path, size=64)
    assert len(read_back) == (frames or 1)
    np.testing.assert_allclose(read_back[0][0].numpy(), percentiles(stored[: frames or 1])[0], atol=2e-5)


@pytest.mark.parametrize("stated", [None, ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_compressed_pixels_of_a_syntax_that_is_not_stated_are_refused(tmp_path, stated, name):
    """Without file meta information pixels are raw, unless they come in a sequence of items."""
    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    words = r"Transfer Syntax UID \(0002,0010\) is .*, but its pixels are encapsulated, .*; set it in the file"
    for defined in (False, True):
        dataset["PixelData"].is_undefined_length = not defined
        body = DicomBytesIO()
        if defined:
            dataset.PixelData += b"\xfe\xff\xdd\xe0\0\0\0\0"
        body.is_implicit_VR, body.is_little_endian = stated != ExplicitVRLittleEndian, True
        if stated is not None:
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = stated
            body.write(bytes(128) + b"DICM")
            pydicom.filewriter.write_file_meta_info(body, meta, enforce_standard=False)
        pydicom.filewriter.write_dataset(body, dataset)
        (tmp_path / "a.dcm").write_bytes(body.getvalue())
        with pytest.raises(DataError, match=words):
            list(read_file(tmp_path / "a.dcm", DataConfig()))


def test_gzip_and_no_preamble(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    expected = image(tmp_path, path)
    whole = path.read_bytes()
    for name in ("b.dcm.gz", "c.dcm", "IM0001.gz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        np.testing.assert_array_equal(image(tmp_path, tmp_path / name), expected)
    (tmp_path / "bare.dcm.gz").write_bytes(gzip.compress(whole[132:]))
    np.testing.assert_array_equal(image(tmp_path, tmp_path / "bare.dcm.gz"), expected)


def deflated(dataset, path):
    """The file with its meta information unchanged and its data set deflated."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_deflated_files_are_read_within_their_limit(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    expected = image(tmp_path, path)
    np.testing.assert_array_equal(image(tmp_path, deflated(pydicom.dcmread(path), tmp_path / "b.dcm")), expected)
    with pytest.raises(DataError, match="unpacks to more than 8 bytes for each of max_voxels 1,000"):
        image(tmp_path, tmp_path / "b.dcm", max_voxels=1000)
    (tmp_path / "c.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="unpacks to more than 8 bytes for each of max_voxels 1,000"):
        image(tmp_path, tmp_path / "c.dcm.gz", max_voxels=1000)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"Rows": 65535, "Columns": 65535}, "declares 65535 x 65535 pixels, more than max_pixels .* raise max_pixels"),
        ({"NumberOfFrames": 2**31 - 1}, "values, more than max_voxels .* raise max_voxels"),
        ({"Rows": 0}, r"Rows \(0028,0010\) is 0 .* the image has no pixels"),
        ({"Rows": None}, r"Rows \(0028,0010\) is missing or empty"),
        ({"NumberOfFrames": -1}, r"Number of Frames \(0028,0008\) is -1; correct it"),
        ({"SamplesPerPixel": 4}, "has 4 samples per pixel"),
        ({"BitsAllocated": None}, r"Bits Allocated \(0028,0100\) is missing or empty"),
    ],
)
def test_sizes_are_checked_before_pixels_are_decoded(tmp_path, attributes, words):
    path = make_dicom(tmp_path / "a.dcm", RAMP, **attributes)
    with pytest.raises(DataError, match=words):
        image(tmp_path, path)


@pytest.mark.parametrize("uid", [SegmentationStorage, RTDoseStorage, EncapsulatedPDFStorage, "1.3.12.2.1107.5.9.1"])
def test_what_is_no_picture_is_left_out_and_counted(tmp_path, uid):
    folder = tmp_path / "scans"
    folder.mkdir()
    make_dicom(folder / "a.dcm", RAMP)
    for name in ("b.dcm", "c.dcm"):
        dataset = pydicom.dcmread(make_dicom(folder / name, RAMP))
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
        if uid not in (SegmentationStorage, RTDoseStorage):
            del dataset.PixelData
        dataset.save_as(folder / name)
    dataset = read(tmp_path, folder)
    assert len(dataset) == 1
    (line,) = summary(dataset.remarks)
    assert line.startswith("left out: 2 files, not an image according to its SOP class, ")
    assert not dataset.skipped


def test_an_image_without_pixels_is_an_error(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(DataError, match="has the SOP class of an image, CT Image Storage, but no pixel data"):
        image(tmp_path, path)


def test_modality_series_and_image_type_choose(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, (modality, series, kind) in enumerate(
        [
            ("MR", "T2 FLAIR ax", ["ORIGINAL", "PRIMARY", "M"]),
            ("MR", "T1", ["DERIVED", "SECONDARY"]),
            ("CT", "", ["ORIGINAL"]),
        ]
    ):
        make_dicom(folder / f"{number}.dcm", RAMP, Modality=modality, SeriesDescription=series, ImageType=kind)
    (folder / "x.npy").write_bytes(b"")
    np.save(folder / "x.npy", RAMP)
    for options, names in (
        ({"modality": "MR"}, "01"), ({"series": "*FLAIR*"}, "0"), ({"image_type": "ORIGINAL\\PRIMARY*"}, "0"),
        ({"modality": "[CM][TR]", "image_type": "ORIGINAL*"}, "02"),
    ):  # fmt: skip
        dataset = read(tmp_path, folder, **options)
        assert [info.path[-5] for info in dataset.slices] == list(names)
        assert sum(remark.kind == "class" for remark in dataset.remarks) == 4 - len(names)
    message = r"(?s)no image is left of 4 files:.*left out: 3 files, modality does not match US"
    with pytest.raises(DataError, match=message):
        read(tmp_path, folder, modality="US")


@pytest.mark.parametrize("normalize", ["auto", "full"])
def test_a_series_may_share_its_normalisation(tmp_path, normalize):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(4):  # two series of two slices, the second slice of each ten times as bright
        make_dicom(folder / f"{number}.dcm", RAMP // (1 if number % 2 else 10), SeriesInstanceUID=f"1.2.{number // 2}",
                   RescaleSlope=number // 2 + 1, RescaleIntercept=-7)  # fmt: skip
    np.save(folder / "x.npy", RAMP)
    (folder / "damaged.dcm").write_bytes(b"rubbish" * 100)
    options = {"normalize": normalize, "normalize_by": "series", "size": 64, "on_error": "skip"}
    with pytest.warns(UserWarning, match="could not be read"):
        dataset = read(tmp_path, folder, **options)
    both = np.stack([RAMP // 10, RAMP]).astype(float)
    limits = np.percentile(both, (0.5, 99.5)) if normalize == "auto" else (both.min(), both.max())
    for number in range(4):
        np.testing.assert_allclose(dataset[number][0].numpy(), linear(both, *limits)[number % 2], atol=4e-5)
    arguments = ["prepare", "folder", folder, "--out", tmp_path / "store", "--processes", 2, "--data.size", 64,
                 "--data.min_foreground", 0, "--data.on_error", "skip", "--data.normalize_by", "series",
                 "--data.normalize", normalize]  # fmt: skip
    assert main([*map(str, arguments)]) == 0
    with pytest.warns(UserWarning, match="could not be read"):
        store = SliceDataset(DataConfig(root=str(tmp_path / "store"), size=64))
    assert all((store[i] == dataset[i]).all() for i in range(5))


def test_video_and_unknown_compression_are_named(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    content = path.read_bytes()
    old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.102"
    meta = pydicom.dcmread(path).file_meta
    assert content.count(old) == 1
    meta.TransferSyntaxUID = new.decode()
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    pydicom.filewriter.write_file_meta_info(buffer, meta)
    start = 144 + struct.unpack("<I", content[140:144])[0]
    path.write_bytes(content[:128] + b"DICM" + buffer.getvalue() + content[start:])
    with pytest.raises(
        DataError, match=r"compressed as MPEG-4 .* which is not supported; convert the file \(a video to frames\)"
    ):
        list(read_file(path, DataConfig()))


def test_values_in_the_upper_bits_of_compressed_pixels_are_refused(tmp_path):
    dataset = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm", download=False))
    dataset.BitsStored, dataset.HighBit = 12, 15
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"High Bit \(0028,0102\) is 15 with 12 bits stored .* decompress the file"):
        image(tmp_path, tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("name", "marker", "at"),
    [("MR_small_jp2klossless.dcm", b"\xff\x4f\xff\x51", 8), ("SC_rgb_jpeg.dcm", b"\xff\xc0", 5)],
)
def test_a_compressed_stream_cannot_be_larger_than_the_limit(tmp_path, name, marker, at):
    """Rows and Columns state a small picture; the stream, which decoders trust, states a large one."""
    content = bytearray(Path(get_testdata_file(name, download=False)).read_bytes())
    start = content.index(marker) + at
    width = 4 if at == 8 else 2
    content[start : start + 2 * width] = (60000).to_bytes(width, "big") * 2
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(DataError, match="declares 60000 x 60000 pixels, more than max_pixels"):
        image(tmp_path, tmp_path / "a.dcm")


def test_floating_point_pixels_and_their_padding(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    values = np.where(RAMP < 300, -1e6, RAMP / 7).astype(np.float32)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    dataset.FloatPixelPaddingValue = -1e6
    dataset.save_as(path)
    inside = values[RAMP >= 300]
    expected = np.where(RAMP < 300, -1, linear(values, *np.percentile(inside, (0.5, 99.5))))
    np.testing.assert_allclose(image(tmp_path, path), expected, atol=4e-5)
