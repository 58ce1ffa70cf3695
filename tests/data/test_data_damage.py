"""Compressed pixels that are damaged or of another size than the file states: refused by name, never read partially."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from made import make_dicom, make_encapsulated
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless

from vmddpm.data import DataConfig, DataError
from vmddpm.data.readers import read_file

RAMP = (np.add.outer(np.arange(64), np.arange(64)) * 32).astype(np.uint16)  # 0 ... 4032
NOISE = RAMP + np.random.default_rng(0).integers(0, 60, RAMP.shape, np.uint16)
STREAMS = {
    "jpeg": (JPEGBaseline8Bit, lambda: imagecodecs.jpeg8_encode((NOISE // 17).astype(np.uint8)), 8),
    "jpeg of 12 bits": (JPEGExtended12Bit, lambda: imagecodecs.jpeg8_encode(NOISE, bitspersample=12), 12),
    "lossless jpeg": (JPEGLosslessSV1, lambda: imagecodecs.ljpeg_encode(NOISE, bitspersample=16), 16),
    "jpeg-ls": (JPEGLSLossless, lambda: imagecodecs.jpegls_encode(NOISE), 16),
    "jpeg 2000": (JPEG2000Lossless, lambda: imagecodecs.jpeg2k_encode(NOISE, codecformat="j2k", level=0), 16),
}


def planes(path):
    return list(read_file(path, DataConfig()))


def compressed(path, name, stream, **attributes):
    syntax, _, bits = STREAMS[name]
    depth = {"BitsAllocated": -(-bits // 8) * 8, "BitsStored": bits, "HighBit": bits - 1}
    return make_encapsulated(path, NOISE, syntax, [stream], **depth, **attributes)


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_dicom_files_that_are_cut_are_refused(tmp_path, name):
    stream = STREAMS[name][1]()
    (whole,) = planes(compressed(tmp_path / "a.dcm", name, stream))
    expected = NOISE // 17 if name == "jpeg" else NOISE
    np.testing.assert_allclose(whole.pixels, expected, atol={"jpeg": 8, "jpeg of 12 bits": 40}.get(name, 0))
    for share in (0.3, 0.6, 0.97):
        cut = stream[: int(len(stream) * share) // 2 * 2]
        with pytest.raises(DataError, match=r"damaged"):
            planes(compressed(tmp_path / "a.dcm", name, cut))


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_another_size_is_named(tmp_path, name):
    path = compressed(tmp_path / "a.dcm", name, STREAMS[name][1](), Rows=32, Columns=128)
    message = r"Rows \(0028,0010\) is 32 .* is 128, but one of its compressed images has 64 x 64; correct"
    with pytest.raises(DataError, match=message):
        planes(path)


def test_jpeg_in_tiff_files_that_is_cut_is_refused(tmp_path):
    grey = (NOISE // 17).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, compression="jpeg", rowsperstrip=64)
    assert len(planes(tmp_path / "a.tif")) == 1
    content = (tmp_path / "a.tif").read_bytes()
    end = content.rindex(b"\xff\xd9")
    (tmp_path / "a.tif").write_bytes(content[: end - 400] + bytes(402) + content[end + 2 :])
    with pytest.raises(DataError, match=r"a JPEG stream in it lacks its end marker \(FFD9\)"):
        planes(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_voxels_that_do_not_unpack_are_refused(tmp_path, name):
    sitk = pytest.importorskip("SimpleITK")
    voxels = np.stack([NOISE] * 4).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name), True)
    assert len(planes(tmp_path / name)) == 4
    content = bytearray((tmp_path / name).read_bytes())
    for at in (len(content) // 2, -6):  # within the data, and in their checksum
        damaged = bytearray(content)
        damaged[at : at + 4] = bytes(255 - byte for byte in damaged[at : at + 4])
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged") as raised:
            planes(tmp_path / name)
        assert ".cxx" not in str(raised.value)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"PhotometricInterpretation": ""}, r"\(0028,0004\) is missing or empty, .* set it to MONOCHROME2"),
        ({"PhotometricInterpretation": "XYZ"}, r"\(0028,0004\) is XYZ, which is not supported"),
        ({"PixelRepresentation": None}, r"Pixel Representation \(0028,0103\) is missing or wrong; set it to 0"),
        ({"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11}, r"Bits Allocated \(0028,0100\) is 12, .* to 8, 16"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "HSV"}, r"is HSV, .* with 3 samples per pixel; convert"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, r"Planar Configuration \(0028,0006\) is missing"),
    ],
)
def test_attributes_that_are_missing_are_named_with_the_fix(tmp_path, attributes, words):
    with pytest.raises(DataError, match=words):
        planes(make_dicom(tmp_path / "a.dcm", NOISE, **attributes))


def test_frames_that_are_missing_are_counted(tmp_path):
    streams = [imagecodecs.jpegls_encode(NOISE)] * 3
    path = make_encapsulated(tmp_path / "a.dcm", NOISE, JPEGLSLossless, streams, NumberOfFrames=3)
    assert len(planes(path)) == 3
    path = make_encapsulated(tmp_path / "a.dcm", NOISE, JPEGLSLossless, streams, NumberOfFrames=5)
    with pytest.raises(DataError, match=r"3 frames where Number of Frames \(0028,0008\) is 5|are damaged, contradict"):
        planes(path)


def test_dicom_files_may_be_named_img(tmp_path):
    (found,) = planes(make_dicom(tmp_path / "a.img", NOISE))
    np.testing.assert_array_equal(found.pixels, NOISE)


@pytest.mark.parametrize("name", ["jpeg", "jpeg of 12 bits", "lossless jpeg", "jpeg-ls", "jpeg 2000"])
def test_streams_with_an_end_but_without_all_their_data_are_refused(tmp_path, name):
    stream = STREAMS[name][1]()
    start = stream.rindex(b"\xff\xda") + 14 if "2000" not in name else 200
    for share in (0, 0.1, 0.4, 0.7, 0.97):
        cut = stream[: start + int((len(stream) - start) * share)] + b"\xff\xd9"
        with pytest.raises(DataError, match="damaged"):
            planes(compressed(tmp_path / "a.dcm", name, cut + b"\0" * (len(cut) % 2)))


def jpegs():
    """JPEG files of every variant, by name."""
    rng, found = np.random.default_rng(1), {}
    grey = (NOISE // 17).astype(np.uint8)
    odd = np.stack([grey[:41, :37], grey[23:, 27:], rng.integers(0, 256, (41, 37), np.uint8)], -1)
    for name, options in {"plain": {}, "restarts": {"restart_marker_rows": 1}, "whole colour": {"subsampling": 0},
                          "coarse": {"quality": 5}, "optimised": {"optimize": True}}.items():  # fmt: skip
        for kind, array in (("grey", grey), ("colour", odd), ("flat", np.full((48, 48), 90, np.uint8))):
            found[f"{name} {kind}"] = (array, options)
    return found


@pytest.mark.parametrize("name", jpegs())
def test_pictures_with_an_end_but_without_all_their_data_are_refused(tmp_path, name):
    array, options = jpegs()[name]
    path = tmp_path / "a.jpg"
    Image.fromarray(array).save(path, **options)
    (whole,) = planes(path)
    assert whole.pixels.shape == array.shape
    content = path.read_bytes()
    start = content.rindex(b"\xff\xda") + 14
    for end in range(start, len(content) - 3, max((len(content) - start) // 25, 1)):
        path.write_bytes(content[:end] + b"\xff\xd9")
        refused = []
        try:
            (read,) = planes(path)
        except DataError as error:
            refused.append(str(error))
        assert all("damaged" in words for words in refused)
        if not refused:  # the missing part is not part of the picture
            np.testing.assert_array_equal(read.pixels, whole.pixels)


def test_a_stream_with_data_left_is_refused(tmp_path):
    """Lost bits leave data after the picture is complete. Zeros and ones are padding."""
    stream = STREAMS["jpeg"][1]()
    for filling, fits in ((b"\0" * 40, True), (b"\xff" * 40, True), (bytes(range(1, 120)), False)):
        more = stream[:-2] + filling + stream[-2:]
        path = compressed(tmp_path / "a.dcm", "jpeg", more + b"\0" * (len(more) % 2))
        if fits:
            assert len(planes(path)) == 1
        else:
            with pytest.raises(DataError, match="has data left after its picture"):
                planes(path)


def test_jpeg_in_tiff_files_without_all_its_data_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, (NOISE // 17).astype(np.uint8), compression="jpeg", rowsperstrip=64)
    content = path.read_bytes()
    end = content.rindex(b"\xff\xd9")
    path.write_bytes(content[: end - 400] + b"\xff\xd9" + bytes(400) + content[end + 2 :])
    with pytest.raises(DataError, match="has less data than its picture needs"):
        planes(path)


def test_the_checksums_of_png_are_compared(tmp_path):
    """One pixel bit is flipped, and the data still unpack."""
    path, found = tmp_path / "a.png", 0
    Image.fromarray((NOISE // 17).astype(np.uint8)).save(path)
    content = path.read_bytes()
    data = content.index(b"IDAT") + 4
    for at in range(data + 20, content.index(b"IEND") - 16, 40):
        damaged = bytearray(content)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged|cannot be read") as raised:
            planes(path)
        found += "the checksum of its chunk IDAT is wrong" in str(raised.value)
    assert found


def test_damage_within_a_jpeg_ls_stream_is_refused(tmp_path):
    stream = STREAMS["jpeg-ls"][1]()
    for share in (0.3, 0.6, 0.97):
        cut = stream[: int(len(stream) * share)] + b"\xff\xd9"
        with pytest.raises(DataError, match="a JPEG-LS stream in it does not decode"):
            planes(compressed(tmp_path / "a.dcm", "jpeg-ls", cut + b"\0" * (len(cut) % 2)))
