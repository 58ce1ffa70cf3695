"""Volumes as a data set: crops of NIfTI files and DICOM series, resampled to a spacing."""

import nibabel as nib
import nibabel.processing
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from vmddpm.data import DataConfig, DataError, SliceDataset, from_volumes
from vmddpm.data.crops import corners, resample
from vmddpm.data.layouts import folder
from vmddpm.data.prepare import prepare_store

WHOLE = {"spatial_dims": 3, "normalize": "full", "min_foreground": 0.0}


def smooth(shape, affine):
    """A volume whose values are a function of patient coordinates in millimetres: right, anterior, superior."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, grid), -1, 0)
    return (np.sin(x / 17) + np.cos(y / 23) + 0.02 * z).astype(np.float32)


def ranged(values):
    return 2 * (values - values.min()) / np.ptp(values) - 1


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_axes_run_to_superior_posterior_and_left_whatever_the_file_s(axes):
    volume = nib.Nifti1Image(np.random.default_rng(0).random((5, 6, 7), np.float32), np.diag([2.0, 2, 2, 1]))
    turned = volume.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axes))
    )
    assert "".join(nib.aff2axcodes(turned.affine)) == axes
    dataset = from_volumes([turned], DataConfig(**WHOLE, spacing=2, depth=7, size=5))
    assert (len(dataset), dataset[0].shape) == (1, (1, 7, 5, 5))
    expected = ranged(volume.get_fdata())[::-1, ::-1].transpose(2, 1, 0)[:, :5]  # the centred 5 of 6 are the first 5
    np.testing.assert_allclose(dataset[0][0], expected, atol=2e-4)  # 16 bits


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (3.0, 1.7, 2.3)])
def test_resampled_voxels_have_their_stated_positions(spacing):
    """Compared with the function at the voxel centres, except at the edges of the volume."""
    affine = np.diag([0.9, 1.1, 3.0, 1.0])
    volume = smooth((60, 50, 20), affine).transpose(2, 1, 0)
    found = resample(volume, (3.0, 1.1, 0.9), spacing)
    assert found.shape == tuple(int(n * s / w + 1e-9) for n, s, w in zip(volume.shape, (3.0, 1.1, 0.9), spacing))
    places = [(np.arange(n) + 0.5) * w - s / 2 for n, w, s in zip(found.shape, spacing, (3.0, 1.1, 0.9))]
    z, y, x = np.meshgrid(*places, indexing="ij")
    expected = np.sin(x / 17) + np.cos(y / 23) + 0.02 * z
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.01)


def test_resampling_equals_nibabel_s():
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    image = nib.Nifti1Image(smooth((40, 40, 14), affine), affine)
    theirs = nibabel.processing.resample_to_output(image, (1.5, 1.5, 1.5), order=1)
    ours = resample(image.get_fdata().transpose(2, 1, 0), (3.0, 1.0, 1.0), (1.5, 1.5, 1.5)).transpose(2, 1, 0)
    corner = np.array([0.25, 0.25, -0.75])  # centre of our first voxel: half a voxel inside the volume
    grid = np.stack(np.meshgrid(*map(np.arange, ours.shape), indexing="ij"), -1) * 1.5 + corner
    at = np.linalg.inv(theirs.affine)
    places = np.moveaxis(nib.affines.apply_affine(at, grid), -1, 0)
    from scipy.ndimage import map_coordinates

    expected = map_coordinates(theirs.get_fdata(), places, order=1, mode="nearest")
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(ours[inner], expected[inner], atol=0.01)


def test_fine_detail_is_averaged_not_aliased():
    stripes = np.tile(np.array([0.0, 1.0]), 30)[None, None].repeat(6, 0).repeat(6, 1)
    coarse = resample(stripes, (1.0, 1.0, 1.0), (1.0, 1.0, 4.0))
    np.testing.assert_allclose(coarse[..., 1:-1], 0.5, atol=1e-6)


@pytest.mark.parametrize("extent", [7, 10, 33, 91, 182])
@pytest.mark.parametrize("factor", [0.1, 0.3, 0.7, 1 / 3, 2.1])
def test_rounding_costs_no_voxel(extent, factor):
    """For any voxel size, as many voxels as fit to within a thousandth of one."""
    count = round(extent * factor)
    size = count / extent
    assert resample(np.zeros((1, 1, extent)), (1.0, 1.0, size), (1.0, 1.0, 1.0)).shape == (1, 1, count)


@pytest.mark.parametrize(("shape", "stride"), [((8, 8, 8), 3), ((9, 11, 8), 4), ((13, 9, 20), 8), ((12, 12, 12), 100)])
def test_crops_cover_the_volume_to_its_ends(shape, stride):
    config = DataConfig(spatial_dims=3, size=8, spacing=1, stride=stride)
    seen, places = np.zeros(shape, int), list(corners(shape, config))
    assert len(set(places)) == len(places)
    for d, h, w in places:
        assert min(d, h, w) >= 0
        seen[d : d + 8, h : h + 8, w : w + 8] += 1
        assert all(n % stride == 0 or n == e - 8 for n, e in zip((d, h, w), shape))
    assert seen[0, 0, 0] == seen[-1, -1, -1] == 1
    assert stride > 8 or seen.all()


def nifti(path, shape=(12, 12, 12), zooms=(1.0, 1.0, 1.0), dtype=np.float32):
    values = np.random.default_rng(0).random(shape).astype(np.float32) * 100
    image = nib.Nifti1Image(values.astype(dtype), np.diag([*zooms, 1.0]))
    nib.save(image, path)
    return image


def test_a_folder_of_volumes_is_decoded_once(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in "ab":
        nifti(scans / f"{name}.nii.gz", (20, 16, 12))
    config = DataConfig(**WHOLE, root=str(scans), spacing=1, size=8, stride=4, cache_dir=str(tmp_path / "cache"))
    first = SliceDataset(config)
    assert len(first) == 2 * 2 * 3 * 4
    assert [(s.axis, s.index) for s in first.slices[:2]] == [("volume", 0), ("volume", 1)]
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    again = SliceDataset(config)
    assert all(torch.equal(first[i], again[i]) for i in range(len(first)))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == entries


def test_a_store_holds_volumes(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        nifti(tmp_path / "scans" / f"{name}.nii.gz", (20, 16, 12))
    config = DataConfig(**WHOLE, root=str(tmp_path / "scans"), spacing=1, size=8, cache_dir=str(tmp_path / "cache"))
    prepare_store(folder(tmp_path / "scans", config), config, tmp_path / "store", made_from={}, progress=False)
    stored = SliceDataset(DataConfig(**WHOLE, root=str(tmp_path / "store"), spacing=1, size=8))
    direct = SliceDataset(config)
    assert len(stored) == len(direct) == 2
    assert torch.equal(stored[1], direct[1])
    with pytest.raises(DataError, match=r"it holds 1 x 8 x 8 x 8 .* the options say 1 x 8 x 8; set spatial_dims"):
        SliceDataset(DataConfig(root=str(tmp_path / "store"), size=8))
    with pytest.raises(DataError, match="its volumes have spacing 1, but spacing is 2; set it to 1"):
        SliceDataset(DataConfig(**WHOLE, root=str(tmp_path / "store"), spacing=2, size=8))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: nifti(p / "a.nii", zooms=(0.9, 0.9, 5.0)), {"spacing": None},
         r"a\.nii: has voxels of 5 x 0\.9 x 0\.9 mm .* spacing is not set; set it, for example to 0\.9"),
        (lambda p: nifti(p / "a.nii", (12, 12, 7)), {},
         r"a\.nii: has 7 x 12 x 12 voxels of 1 x 1 x 1 mm .* less than a crop of 8 x 8 x 8; lower size or depth"),
        (lambda p: nifti(p / "a.nii", (12, 12, 12, 4)), {},
         r"a\.nii: has 4 frames along its last axis, which would mix modalities or times; choose one"),
        (lambda p: nifti(p / "a.nii", (12, 12, 12, 4)), {"frames": 4}, "has 4 frames, counted from 0; frames is 4"),
        (lambda p: nifti(p / "a.nii", (12, 12), (1.0, 1.0, 1.0)), {}, "has 1 x 12 x 12 voxels .* less than a crop"),
        (lambda p: nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)),
                            p / "a.nii"), {}, r"a\.nii: has colours, and volumes are grey"),
        (lambda p: np.save(p / "a.npy", np.zeros((9, 9))), {}, r"a\.npy: is not a volume: spatial_dims 3 reads NIfTI"),
    ],
    ids=["no spacing", "small", "frames", "no frame", "flat", "colour", "picture"],
)  # fmt: skip
def test_volumes_that_cannot_be_used(tmp_path, make, options, message):
    make(tmp_path)
    usual = {**WHOLE, "root": str(tmp_path), "spacing": 1, "size": 8, "cache_dir": str(tmp_path / "c")}
    config = DataConfig(**{**usual, **options})
    with pytest.raises(DataError, match=message):
        SliceDataset(config)


def test_a_frame_that_is_chosen_is_one_volume(tmp_path):
    image = nifti(tmp_path / "a.nii", (8, 8, 8, 3))
    config = DataConfig(**WHOLE, root=str(tmp_path), spacing=1, size=8, frames=2, cache_dir=str(tmp_path / "c"))
    dataset = SliceDataset(config)
    assert (len(dataset), dataset.slices[0].frame) == (1, 2)
    expected = ranged(image.get_fdata()[..., 2])[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_allclose(dataset[0][0], expected, atol=2e-4)


def test_a_header_that_does_not_know_its_voxels_is_refused(tmp_path):
    nifti(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[76:108] = np.array([1, 0, 0, 0, 0, 0, 0, 0], "<f4").tobytes()  # pixdim
    content[252:256] = bytes(4)  # qform_code, sform_code
    (tmp_path / "a.nii").write_bytes(content)
    config = DataConfig(**WHOLE, root=str(tmp_path), spacing=1, size=8, cache_dir=str(tmp_path / "c"))
    with pytest.raises(DataError, match="gives no voxel size: pixdim is 0, 0, 0"):
        SliceDataset(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; it must be 2, for slices, or 3, for volumes"),
        ({"spacing": 1.0}, "spacing is 1.0; it must be null when spatial_dims is 2"),
        ({"stride": 2}, "stride is 2; it must be null"),
        ({"spatial_dims": 3, "channels": 3}, "channels is 3; it must be 1 when spatial_dims is 3"),
        ({"spatial_dims": 3, "spacing": 0}, "spacing is 0; it must be one or three numbers of mm"),
        ({"spatial_dims": 3, "spacing": [1.0, 2.0]}, "spacing is .*; it must be one or three numbers of mm"),
        ({"spatial_dims": 3, "spacing": float("nan")}, "spacing is nan"),
        ({"spatial_dims": 3, "stride": 0}, "stride is 0; it must be at least 1"),
        ({"spatial_dims": 3, "depth": 0}, "depth is 0; it must be at least 1"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(DataError, match=message):
        DataConfig(**options)


STRAIGHT = np.eye(3)


def series(path, places, spacing=(0.8, 0.7), size=(12, 10), turn=STRAIGHT, **attributes):
    """A CT series, one file per slice, shuffled; values in Hounsfield units are a function of the coordinates."""
    uid = generate_uid()
    path.mkdir(parents=True, exist_ok=True)
    for number, z in enumerate(np.random.default_rng(1).permutation(places)):
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.Modality, ds.PhotometricInterpretation = uid, "CT", "MONOCHROME2"
        ds.Rows, ds.Columns, ds.SamplesPerPixel = *size, 1
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 0.5, -1000
        ds.PixelSpacing = list(spacing)
        ds.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        corner = turn @ np.array([-4.0, 3.0, z])
        ds.ImagePositionPatient = [float(f"{c:.6f}") for c in corner]
        rows, columns = np.meshgrid(*map(np.arange, size), indexing="ij")
        place = corner + columns[..., None] * spacing[1] * turn[:, 0] + rows[..., None] * spacing[0] * turn[:, 1]
        ds.PixelData = np.rint(2 * (1000 + place @ [11.0, 7.0, 5.0])).astype(np.uint16).tobytes()
        for name, value in attributes.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value[number] if isinstance(value, list) else value)
        ds.save_as(path / f"{number:03d}.dcm", enforce_file_format=True)


SERIES = {**WHOLE, "size": 8, "spacing": (2.5, 0.8, 0.7)}


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("turn", [STRAIGHT, turned(12)])
def test_a_dicom_series_is_one_volume_as_SimpleITK_reads_it(tmp_path, turn):
    series(tmp_path / "ct", 2.5 * np.arange(9) - 7, turn=turn)
    dataset = SliceDataset(DataConfig(**SERIES, root=str(tmp_path), cache_dir=str(tmp_path / "c")))
    assert len(dataset) == 1
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    image = reader.Execute()
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.8, 2.5), rtol=1e-5)
    theirs = ranged(SimpleITK.GetArrayFromImage(image))[0:8, 2:10, 1:9]  # the centred 8 of 9, 12 and 10
    np.testing.assert_allclose(dataset[0][0], theirs, atol=2e-4)


def test_a_series_is_prepared_as_one_file(tmp_path):
    series(tmp_path / "scans" / "p1" / "ct", 2.5 * np.arange(9))
    series(tmp_path / "scans" / "p2" / "ct", 2.5 * np.arange(8))
    config = DataConfig(**SERIES, root=str(tmp_path / "scans"), cache_dir=str(tmp_path / "c"))
    made = prepare_store(folder(tmp_path / "scans", config), config, tmp_path / "store", made_from={}, progress=False)
    assert made["images"] == 2
    stored = SliceDataset(DataConfig(**SERIES, root=str(tmp_path / "store")))
    direct = SliceDataset(config)
    assert all(torch.equal(stored[i], direct[i]) for i in range(2))


@pytest.mark.parametrize(
    ("places", "attributes", "message"),
    [
        ([0, 1, 2, 3, 5, 6, 7, 8, 9], {}, r"its slices lie 1 to 2 mm apart: slices are missing"),
        ([0, 1, 2, 3, 3, 4, 5, 6, 7], {}, "several slices at one position, as with several echoes"),
        (range(9), {"PixelSpacing": None}, r"Pixel Spacing \(0028,0030\) is missing, so the position is unknown"),
        (range(9), {"ImagePositionPatient": None}, r"Image Position \(Patient\) \(0020,0032\) is missing"),
        (range(9), {"ImageOrientationPatient": [[1, 0, 0, 0, 1, 0]] * 8 + [[1, 0, 0, 0, 0, 1]]}, "several directions"),
        (range(9), {"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1; volumes need MONOCHROME2"),
        (range(9), {"ImagePositionPatient": [[0, 0.3 * z, z] for z in range(9)]}, "are sheared, as by a tilted gantry"),
        ([3], {}, r"is a single slice without Slice Thickness \(0018,0050\), not a volume"),
    ],
    ids=["missing", "doubled", "spacing", "position", "directions", "inverted", "tilted", "single"],
)
def test_series_that_make_no_volume(tmp_path, places, attributes, message):
    series(tmp_path / "ct", list(places), **attributes)
    with pytest.raises(DataError, match=message):
        SliceDataset(DataConfig(**SERIES, root=str(tmp_path), cache_dir=str(tmp_path / "c")))
