"""Volume files with odd headers or in other formats than NIfTI, against arrays, nibabel and SimpleITK."""

import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vmddpm.data import DataConfig, DataError
from vmddpm.data.readers import read_file
from vmddpm.data.remarks import summary
from vmddpm.data.tally import Tally

VOXELS = np.random.default_rng(0).integers(-1000, 3000, (12, 10, 3), np.int16)
# Fields of the NIfTI-1 header: format and offset.
FIELDS = {
    "dim": ("<8h", 40), "datatype": ("<h", 70), "pixdim": ("<8f", 76), "vox_offset": ("<f", 108),
    "scl_slope": ("<f", 112), "scl_inter": ("<f", 116), "codes": ("<hh", 252), "quaternion": ("<3f", 256),
    "sform": ("<12f", 280),
}  # fmt: skip
STRAIGHT = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)


def nifti(path, voxels=VOXELS, **fields):
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    data = bytearray(path.read_bytes())
    for name, values in fields.items():
        form, at = FIELDS[name]
        struct.pack_into(form, data, at, *values)
    path.write_bytes(data)
    return path


def planes(path, **options):
    return list(read_file(path, DataConfig(**options)))


def shown(voxels):
    """The axial slices of voxels (right, anterior, superior): anterior up, right on the left."""
    return np.stack([np.flip(np.swapaxes(voxels[:, :, z], 0, 1), (0, 1)) for z in range(voxels.shape[2])])


def assert_shown(found, voxels):
    np.testing.assert_array_equal(np.stack([one.pixels for one in found]), shown(voxels))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_compression_is_by_content(tmp_path, name, compressed):
    content = nifti(tmp_path / "plain.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    assert_shown(planes(tmp_path / name), VOXELS)


@pytest.mark.parametrize("square", [1 + 1e-6, 1 + 1e-4, 1.5])
def test_quaternions_above_unit_length_are_made_units(tmp_path, square):
    """Half a turn about the third axis reverses the first two axes."""
    path = nifti(tmp_path / "a.nii", codes=(1, 0), quaternion=(0, 0, square**0.5), pixdim=(1, 1, 1, 1, 0, 0, 0, 0))
    assert_shown(planes(path), VOXELS[::-1, ::-1])


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan,) * 4, (np.inf, 0, 0, 0), (1, 0, 0, 0)])
def test_an_sform_that_says_nothing_gives_way_to_the_qform(tmp_path, row):
    """A second row of zeros, not finite, or equal to the first gives no orientation."""
    sform = (*STRAIGHT[:4], *row, *STRAIGHT[8:])
    path = nifti(tmp_path / "a.nii", codes=(1, 1), quaternion=(0, 0, 1), sform=sform, pixdim=(1, 1, 1, 1, 0, 0, 0, 0))
    assert_shown(planes(path), VOXELS[::-1, ::-1])
    nifti(path, codes=(0, 1), sform=sform)
    with pytest.raises(DataError, match="neither its sform nor its qform gives an orientation"):
        planes(path)


@pytest.mark.parametrize("sign", [0.0, 1.0, -1.0, 7.0])
def test_the_sign_of_the_third_axis(tmp_path, sign):
    """pixdim[0] is -1 if the third axis is reversed; any other value means 1."""
    path = nifti(tmp_path / "a.nii", codes=(1, 0), quaternion=(0, 0, 0), pixdim=(sign, 1, 1, 1, 0, 0, 0, 0))
    assert_shown(planes(path), VOXELS[:, :, ::-1] if sign < 0 else VOXELS)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (2, 5, (2, 5)),
        (0, 5, (1, 0)),
        (np.nan, 5, (1, 0)),
        (np.inf, 5, (1, 0)),
        (2, np.nan, (2, 0)),
        (2, np.inf, (2, 0)),
    ],
)
def test_slopes_and_intercepts_that_are_not_finite_are_none(tmp_path, slope, intercept, expected):
    path = nifti(tmp_path / "a.nii", scl_slope=(slope,), scl_inter=(intercept,))
    assert_shown(planes(path), VOXELS.astype(float) * expected[0] + expected[1])


@pytest.mark.parametrize("dim", [(4, 12, 10, 3, 0, 1, 1, 1), (5, 12, 10, 3, 0, 0, 1, 1), (4, 12, 10, 3, -1, 1, 1, 1)])
def test_axes_without_length_have_length_one(tmp_path, dim):
    assert_shown(planes(nifti(tmp_path / "a.nii", dim=dim)), VOXELS)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (np.nan, 1, 1), (-1, 1, 1)])
def test_voxel_sizes_that_are_none(tmp_path, sizes):
    path = nifti(tmp_path / "a.nii", codes=(1, 0), quaternion=(0, 0, 0), pixdim=(1, *sizes, 0, 0, 0, 0))
    found = planes(path)
    assert_shown(found, VOXELS)
    assert found[0].spacing == (1, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": (9, 12, 10, 3, 1, 1, 1, 1)}, r"dim\[0\] is 9, not from 1 to 7"),
        ({"dim": (3, 0, 10, 3, 1, 1, 1, 1)}, r"is empty: dim\[1\] is 0"),
        ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "declares 32767 x 32767 pixels, more than max_pixels"),
        ({"dim": (3, 8000, 8000, 30000, 1, 1, 1, 1)}, "declares 8000 x 8000 x 30000 values, more than max_voxels"),
        ({"dim": (4, 512, 512, 512, 30000, 1, 1, 1)}, "is damaged or truncated: its header declares"),
        ({"vox_offset": (np.inf,)}, "vox_offset is inf"),
        ({"vox_offset": (-5.0,)}, "vox_offset is -5"),
        ({"datatype": (77,)}, "datatype is 77, which is not a NIfTI data type"),
    ],
)
def test_damaged_headers_are_named_before_voxels_are_read(tmp_path, fields, words):
    path = nifti(tmp_path / "a.nii", **fields)
    for name in ("a.nii", "b.nii.gz"):
        (tmp_path / name).write_bytes(path.read_bytes() if name == "a.nii" else gzip.compress(path.read_bytes()))
        with pytest.raises(DataError, match=words):
            planes(tmp_path / name)


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_colour_voxels_are_in_colour(tmp_path, kind):
    colours = np.random.default_rng(0).integers(0, 256, (12, 10, 3, 4), np.uint8)
    voxels = np.zeros((12, 10, 3), [(name, "u1") for name in kind])
    for number, name in enumerate(kind):
        voxels[name] = colours[..., number]
    nib.save(nib.Nifti1Image(voxels, np.diag([2, 3, 4, 1])), tmp_path / "a.nii.gz")
    found = planes(tmp_path / "a.nii.gz")
    assert_shown(found, colours[..., :3])
    assert (found[0].black, found[0].white, found[0].spacing) == (0, 255, (3, 2))
    (side, *_) = planes(tmp_path / "a.nii.gz", axes=["sagittal"])
    np.testing.assert_array_equal(side.pixels, np.flip(colours[0, ..., :3].swapaxes(0, 1), (0, 1)))


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_small_differences_on_a_large_offset_are_kept(tmp_path, dtype):
    voxels = (10**9 + VOXELS.astype(int)).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    assert_shown(planes(tmp_path / "a.nii"), voxels)
    nib.save(nib.Nifti1Image(VOXELS.astype(dtype), np.eye(4)), tmp_path / "b.nii")
    assert planes(tmp_path / "b.nii")[0].pixels.dtype == np.float32


def test_one_frame_of_several(tmp_path):
    series = np.stack([VOXELS, VOXELS * 2, VOXELS * 3], 3)
    nib.save(nib.Nifti1Image(series, np.eye(4)), tmp_path / "a.nii.gz")
    for number in (0, 1, 2, "1"):
        found = planes(tmp_path / "a.nii.gz", frames=number)
        assert_shown(found, VOXELS * (int(number) + 1))
        assert {one.frame for one in found} == {int(number)}
    with pytest.raises(DataError, match="has 3 frames, counted from 0; frames is 3"):
        planes(tmp_path / "a.nii.gz", frames=3)
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "b.nii")
    assert_shown(planes(tmp_path / "b.nii", frames=2), VOXELS)  # a volume next to a series


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm99AnalyzeImage, nib.AnalyzeImage])
def test_pairs_of_header_and_voxels_are_one_volume(tmp_path, kind, suffix):
    affine = np.diag([-2.0, 3, 4, 1])
    kind(VOXELS, affine).to_filename(tmp_path / "a.hdr")
    (tmp_path / "a.mat").unlink(missing_ok=True)
    for name in ("a.hdr", "a.img"):
        if suffix:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
            (tmp_path / name).unlink()
    expected = nib.as_closest_canonical(
        kind(VOXELS, affine) if "Nifti" in kind.__name__ else nib.load(tmp_path / f"a.hdr{suffix}")
    )
    assert_shown(planes(tmp_path / f"a.hdr{suffix}"), np.asarray(expected.dataobj))
    (tmp_path / f"a.img{suffix}").unlink()
    with pytest.raises(DataError, match=r"is a header, but the a\.img"):
        planes(tmp_path / f"a.hdr{suffix}")


@pytest.mark.parametrize("offset", [0, 348, 351])
def test_voxels_do_not_begin_within_the_header(tmp_path, offset):
    message = f"vox_offset is {offset}, inside the header; in one file it must be at least 352"
    with pytest.raises(DataError, match=message):
        planes(nifti(tmp_path / "a.nii", vox_offset=[offset]))


def test_analyze_volumes_that_a_matrix_puts_elsewhere_are_refused(tmp_path):
    nib.Spm99AnalyzeImage(VOXELS, np.array([[2, 0, 0, 0], [0, 0, 2, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])).to_filename(
        tmp_path / "a.hdr"
    )
    (tmp_path / "a.mat").write_bytes(b"MATLAB")
    message = r"is an Analyze volume with its orientation in a\.mat, .*; convert it to NIfTI"
    with pytest.raises(DataError, match=message):
        planes(tmp_path / "a.hdr")
    (tmp_path / "a.mat").unlink()
    assert {one.note.split(":")[0] for one in planes(tmp_path / "a.hdr")} == {
        "an Analyze volume, whose header gives no orientation"
    }


@pytest.mark.parametrize("intercept", [1e30, -3e38])
def test_an_intercept_too_large_for_the_voxels_is_named(tmp_path, intercept):
    with pytest.raises(DataError, match=r"scl_inter is .*, so large that voxels times scl_slope 1 are lost"):
        planes(nifti(tmp_path / "a.nii", scl_slope=[1], scl_inter=[intercept]))


@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_that_may_be_transparent_are_refused(tmp_path, channels):
    np.save(tmp_path / "a.npy", np.zeros((8, 9, channels), np.uint8))
    with pytest.raises(DataError, match=r"with transparency; save \(H, W\)"):
        planes(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_freesurfer_volumes(tmp_path, name):
    turned = np.array([[-1, 0, 0, 5], [0, 0, 1, -7], [0, -1, 0, 3], [0, 0, 0, 1.0]])
    image = nib.MGHImage(VOXELS.astype(np.int32), turned)
    image.to_filename(tmp_path / name)
    assert_shown(planes(tmp_path / name), np.asarray(nib.as_closest_canonical(image).dataobj))
    content = bytearray(
        (tmp_path / name).read_bytes() if name == "a.mgh" else gzip.decompress((tmp_path / name).read_bytes())
    )
    content[4:16] = struct.pack(">3i", 10000, 10000, 10000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="10000 x 10000 pixels, more than max_pixels"):
        planes(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_and_nrrd(tmp_path, name, compressed):
    """Their axes run to left and posterior, NIfTI's to right and anterior: the same anatomy gives the same slices."""
    sitk = pytest.importorskip("SimpleITK")
    affine = np.array([[0, -2, 0, 5], [3, 0, 0, -7], [0, 0, -4, 3], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / name), compressed)
    expected, found = planes(tmp_path / "a.nii.gz"), planes(tmp_path / name)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_allclose(a.spacing, b.spacing)


def test_metaimage_and_nrrd_of_other_shapes(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    colours = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "rgb.mha"))
    found = planes(tmp_path / "rgb.mha")
    assert found[0].pixels.shape == (10, 12, 3)
    np.testing.assert_array_equal(found[1].pixels, colours[1])  # axes run to left and posterior: shown as stored
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS[..., 0]), str(tmp_path / "flat.nrrd"))
    (flat,) = planes(tmp_path / "flat.nrrd")
    np.testing.assert_array_equal(flat.pixels, VOXELS[..., 0])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.mha",
            "ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n",
        ),
        ("a.nrrd", "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\nencoding: raw\ndata file: /etc/passwd\n\n"),
        ("a.nrrd", "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\nencoding: raw\ndatafile: LIST\n/etc/passwd\n\n"),
    ],
)
def test_a_header_cannot_name_other_files(tmp_path, name, text):
    pytest.importorskip("SimpleITK")
    (tmp_path / name).write_text(text + "0" * 100)
    with pytest.raises(DataError, match="its voxels are in another file; convert it to one file"):
        planes(tmp_path / name)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    pytest.importorskip("SimpleITK")
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sc\xe4n.mha"))
    path.write_bytes(b"ObjectType = Image\nElementDataFile = LOCAL\n")
    with pytest.raises(DataError, match="has a name that is not UTF-8, which SimpleITK cannot open; rename it"):
        planes(path)


@pytest.mark.parametrize(
    "array", [VOXELS[..., 0], VOXELS[..., 0] > 0, VOXELS[..., 0] / 7, VOXELS[..., 0].astype(np.uint8)]
)
def test_arrays_of_one_slice(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    (found,) = planes(tmp_path / "a.npy")
    np.testing.assert_array_equal(found.pixels, array)
    depths = {"bool": (0, 1), "uint8": (0, 255)}
    expected = depths.get(str(array.dtype), tuple(np.percentile(array.astype(float), (0.5, 99.5))))
    np.testing.assert_allclose((found.black, found.white), expected)


def test_arrays_of_several_slices_and_of_colour(tmp_path):
    for array, count in (
        (np.moveaxis(VOXELS, 2, 0).copy(), 3),
        (np.abs(VOXELS).astype(np.uint8), 1),
        (np.asfortranarray(VOXELS[..., 0]), 1),
    ):
        np.save(tmp_path / "a.npy", array)
        found = planes(tmp_path / "a.npy")
        assert len(found) == count
        np.testing.assert_array_equal(found[-1].pixels, array[-1] if count == 3 else array)


@pytest.mark.parametrize("array", [np.zeros(5), np.zeros((2, 3, 4, 5)), np.zeros((4, 4), complex), np.zeros((0, 4))])
def test_arrays_that_are_no_slices_are_named(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"an image is \(H, W\), \(H, W, 3\) in colour or \(N, H, W\)"):
        planes(tmp_path / "a.npy")


def test_arrays_are_never_unpickled_nor_believed(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds object of shape"):
        planes(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((8, 8)))
    content = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(content.replace(b"(8, 8), }    ", b"(8000, 8000), }")[: len(content)])
    with pytest.raises(DataError, match="its header declares 512,000,000 bytes"):
        planes(tmp_path / "b.npy")


def test_twelve_bits_in_arrays_are_reported(tmp_path):
    np.save(tmp_path / "a.npy", np.abs(VOXELS[..., 0]).astype(np.uint16))
    tally = Tally("a", DataConfig(size=8, min_foreground=0))
    assert len(list(tally.kept(planes(tmp_path / "a.npy")))) == 1
    assert "fit into 12 bits" in summary(tally.remarks())[0]
