"""Values of DICOM files whose bits, tables and functional groups disagree, against arithmetic."""

import imagecodecs
import numpy as np
import pydicom
import pytest
from made import item, make_dicom, make_encapsulated
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless

from vmddpm.data import DataConfig
from vmddpm.data.readers import read_file

RAMP = (np.add.outer(np.arange(64), np.arange(64)) * 32).astype(np.uint16)  # 0 ... 4032
SIGNED = RAMP.astype(np.int16) - 2000
TWELVE = {"BitsStored": 12, "HighBit": 11}


def planes(path):
    return list(read_file(path, DataConfig()))


def with_padding(path, vr, value):
    dataset = pydicom.dcmread(path)
    dataset[0x00280120] = DataElement(0x00280120, vr, value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["jpeg-ls", "jpeg 2000"])
def test_streams_may_leave_the_sign_out_of_the_upper_bits(tmp_path, name, masked):
    words = SIGNED.view(np.uint16) & (0xFFF if masked else 0xFFFF)
    if name == "jpeg-ls":
        syntax, stream = JPEGLSLossless, imagecodecs.jpegls_encode(words)
    else:
        syntax, stream = JPEG2000Lossless, imagecodecs.jpeg2k_encode(words, codecformat="j2k", level=0)
    path = make_encapsulated(tmp_path / "a.dcm", words, syntax, [stream], PixelRepresentation=1, **TWELVE)
    (found,) = planes(path)
    np.testing.assert_array_equal(found.pixels, SIGNED)


def test_padding_beyond_the_stored_bits_leaves_the_other_pixels_alone(tmp_path):
    """Overlay bits above the values, and sign bits that are not stored."""
    nothing = RAMP < 200
    overlay = np.where(np.arange(64) % 2 == 0, RAMP | 0x8000, RAMP)
    path = make_dicom(tmp_path / "a.dcm", np.where(nothing, 63536, overlay), **TWELVE)
    (found,) = planes(with_padding(path, "US", 63536))
    np.testing.assert_array_equal(found.pixels, np.where(nothing, np.nan, RAMP))
    words = np.where(nothing, 0x8000, SIGNED.view(np.uint16) & 0xFFF)
    path = make_dicom(tmp_path / "b.dcm", words, PixelRepresentation=1, **TWELVE)
    (found,) = planes(with_padding(path, "SS", -32768))
    np.testing.assert_array_equal(found.pixels, np.where(nothing, np.nan, SIGNED))


def table(first, entries, bits, vr="SS"):
    lut = item(LUTData=np.asarray(entries, "<u2").tobytes())
    lut["LUTData"].VR = "OW"
    lut[0x00283002] = DataElement(0x00283002, vr, [len(entries), first, bits])
    return lut


@pytest.mark.parametrize(("vr", "first"), [("SS", -4095), ("US", 2**16 - 4095)])
def test_a_voi_table_of_values_with_a_negative_slope(tmp_path, vr, first):
    lut = table(first, np.arange(4096) * 16, 16, vr)
    path = make_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=0, VOILUTSequence=[lut])
    (found,) = planes(path)
    np.testing.assert_array_equal(found.pixels, (4095 - RAMP.astype(int)) * 16)
    assert (found.black, found.white) == (0, 65535)


@pytest.mark.parametrize(("bits", "factor", "white"), [(8, 1, 4095), (16, 1 / 16, 255), (14, 1, None), (12, 1, None)])
def test_a_voi_table_whose_bits_are_not_its_entries(tmp_path, bits, factor, white):
    entries = (np.arange(4096) * factor).astype(np.uint16)
    path = make_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table(0, entries, bits, "US")])
    (found,) = planes(path)
    np.testing.assert_array_equal(found.pixels, entries[RAMP])
    assert (found.black, found.white) == (0, white or 2**bits - 1)
    assert found.note == ("" if white is None else
        f"LUT Descriptor (0028,3002) gives {bits} bits per entry, but the VOI table's entries need "
        f"{white.bit_length()}: read as 0 ... {white}")  # fmt: skip


def test_a_window_of_the_frame_goes_before_a_table_at_the_top(tmp_path):
    frames = [item(FrameVOILUTSequence=[item(WindowCenter=100.5 * n, WindowWidth=51)]) for n in (1, 2)]
    path = make_dicom(
        tmp_path / "a.dcm", np.stack([RAMP, RAMP]), VOILUTSequence=[table(0, np.arange(4096), 12, "US")],
        PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip
    assert [(one.black, one.white) for one in planes(path)] == [(75, 125), (175.5, 225.5)]


def test_the_pixel_spacing_of_functional_groups_counts_in_colour(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.set_pixel_data(np.stack([RAMP // 16] * 6, -1).reshape(2, 64, 64, 3).astype(np.uint8), "RGB", 8)
    dataset.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[item(PixelSpacing=[2, 1])])]
    dataset.save_as(path)
    assert [one.spacing for one in planes(path)] == [(2, 1), (2, 1)]


def test_a_palette_of_eight_bits_in_big_endian_words(tmp_path):
    indices = (RAMP // 16).astype(np.uint8)
    palette = np.random.default_rng(0).integers(0, 256, (3, 256), np.uint8)
    dataset = pydicom.dcmread(make_dicom(tmp_path / "a.dcm", RAMP))
    dataset.set_pixel_data(indices, "MONOCHROME2", 8)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    for colour, entries in zip(("Red", "Green", "Blue"), palette):
        name = f"{colour}PaletteColorLookupTable"
        setattr(dataset, f"{name}Descriptor", [256, 0, 8])
        setattr(dataset, f"{name}Data", entries.view("<u2").astype(">u2").tobytes())
    pydicom.dcmwrite(tmp_path / "b.dcm", dataset, little_endian=False, implicit_vr=False, enforce_file_format=True)
    (found,) = planes(tmp_path / "b.dcm")
    np.testing.assert_array_equal(found.pixels, np.moveaxis(palette[:, indices], 0, -1))


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.25, 10**8)])
def test_small_differences_on_a_large_offset_are_kept(tmp_path, slope, intercept):
    values = 10**9 + RAMP.astype(np.uint32) // 32
    dataset = pydicom.dcmread(make_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=slope, RescaleIntercept=intercept))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 32, 31
    dataset.PixelData = values.astype("<u4").tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    (found,) = planes(tmp_path / "a.dcm")
    np.testing.assert_array_equal(found.pixels, values * slope + intercept)
    limits = np.percentile(values * slope + intercept, (0.5, 99.5))
    np.testing.assert_allclose((found.black, found.white), limits, rtol=0, atol=0.01)
