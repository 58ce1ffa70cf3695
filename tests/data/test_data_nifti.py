"""NIfTI volumes: orientation, frames, slopes, proportions and damage, against nibabel's own arrays."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.testing import data_path

from vmddpm.data import DataConfig, DataError, SliceDataset, from_volumes

EXAMPLE = data_path / "example4d.nii.gz"


def read(tmp_path, root, **options):
    options = {"min_foreground": 0, **options}
    return SliceDataset(DataConfig(root=str(root), cache_dir=str(tmp_path / "cache"), **options))


def save(path, voxels, affine=None, slope=None):
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def expected_image(plane, volume, percentiles=(0.5, 99.5)):
    low, high = np.percentile(volume, percentiles)
    return np.clip((plane - low) / (high - low), 0, 1) * 2 - 1


def test_a_real_4d_file_has_the_right_shape_orientation_and_polarity(tmp_path):
    dataset = read(tmp_path, EXAMPLE, size=96)
    raw = nib.load(EXAMPLE).get_fdata()
    assert nib.aff2axcodes(nib.load(EXAMPLE).affine) == ("L", "A", "S")
    assert len(dataset) == dataset.seen == 24 * 2
    assert dataset[0].shape == (1, 96, 96)
    for i, (frame, index) in enumerate(itertools.product(range(2), range(24))):
        info = dataset.slices[i]
        assert (info.path, info.axis, info.index, info.frame) == (str(EXAMPLE), "axial", index, frame)
        # The first axis runs to the patient's left, which is the image's right: columns stay as stored.
        # The second runs to anterior, which is up: rows are reversed. 128 x 96 voxels are cropped to 96 x 96.
        plane = raw[16:112, ::-1, index, frame].T
        expected = expected_image(plane, raw[..., frame])
        np.testing.assert_allclose(dataset[i][0].numpy(), expected, atol=2e-5)


def test_frames_first_is_the_beginning_of_all(tmp_path):
    every, first = read(tmp_path, EXAMPLE), read(tmp_path, EXAMPLE, frames="first")
    assert first.slices == every.slices[:24]
    assert all((first[i] == every[i]).all() for i in range(24))


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_the_right_anterior_superior_corner_is_at_the_top_left(axis):
    # Left is the patient's right (anterior in sagittal views); up is superior (anterior in axial views).
    voxels = np.zeros((12, 12, 12), np.float32)
    voxels[6:, 6:, 6:] = 1
    dataset = from_volumes([voxels], DataConfig(size=12, axes=[axis], normalize="full", min_foreground=0))
    quadrant = -np.ones((12, 12), np.float32)
    quadrant[:6, :6] = 1
    np.testing.assert_array_equal(dataset[11][0].numpy(), quadrant)
    assert (dataset[0] == -1).all()


def test_the_same_anatomy_gives_the_same_images_in_all_48_storage_orders():
    rng = np.random.default_rng(0)
    volume = nib.Nifti1Image(rng.random((10, 11, 12)).astype(np.float32), np.diag([2.0, 3.0, 4.0, 1.0]))
    config = DataConfig(size=16, axes=["axial", "coronal", "sagittal"], min_foreground=0)
    reference = from_volumes([volume], config)
    assert [len([s for s in reference.slices if s.axis == axis]) for axis in config.axes] == [12, 11, 10]
    orders = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    stored = [volume.as_reoriented(np.array([axes, flips]).T) for axes, flips in orders]
    assert len({nib.aff2axcodes(image.affine) for image in stored}) == 48
    dataset = from_volumes(stored, config)
    assert len(dataset) == 48 * len(reference)
    for i in range(len(dataset)):
        same = i % len(reference)
        assert dataset.slices[i].index == reference.slices[same].index
        assert (dataset[i] == reference[same]).all()


def test_an_oblique_scan_takes_its_nearest_axes(tmp_path):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    voxels = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = turn
    dataset = read(tmp_path, save(tmp_path / "a.nii", voxels, affine), size=8)
    np.testing.assert_allclose(
        dataset[1][0].numpy(), expected_image(voxels[::-1, ::-1, 1].T, voxels), atol=2e-5
    )


def test_slope_and_intercept_are_honoured(tmp_path):
    stored = np.arange(6 * 6 * 2, dtype=np.int16).reshape(6, 6, 2)
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(20, -1000)
    nib.save(image, path)
    values = nib.load(path).get_fdata()
    assert values.min() < -900
    dataset = read(tmp_path, path, size=6, window=(-500.0, 600.0))
    expected = np.clip((values + 500) / 300, -1, 1)
    for index in range(2):
        np.testing.assert_allclose(dataset[index][0].numpy(), expected[::-1, ::-1, index].T, atol=2e-5)


def test_each_frame_has_its_own_percentiles(tmp_path):
    voxels = np.random.default_rng(0).random((8, 8, 4)).astype(np.float32)
    series = np.stack([voxels, 100 * voxels], axis=3)
    dataset = read(tmp_path, save(tmp_path / "a.nii", series), size=8)
    assert [info.frame for info in dataset.slices] == [0] * 4 + [1] * 4
    for index in range(4):
        np.testing.assert_allclose(dataset[index].numpy(), dataset[4 + index].numpy(), atol=1e-4)


def test_thick_slices_seen_from_the_side_have_their_true_proportions():
    # A ball of 24 mm radius in voxels of 1 x 1 x 4 mm; the view is 64 mm wide.
    x, y, z = np.mgrid[:80, :80, :16].astype(np.float32)
    ball = ((x - 39.5) ** 2 + (y - 39.5) ** 2 + (4 * (z - 7.5)) ** 2 < 24**2).astype(np.float32)
    volume = nib.Nifti1Image(ball, np.diag([1.0, 1.0, 4.0, 1.0]))
    config = DataConfig(size=128, axes=["coronal"], normalize="full", min_foreground=0)
    image = from_volumes([volume], config)[40][0] > 0
    height, width = (int(image.any(axis).sum()) for axis in (1, 0))
    assert width == pytest.approx(2 * 24 / 64 * 128, abs=4)
    assert height == pytest.approx(width, abs=8)


@pytest.mark.filterwarnings("error")
def test_voxels_that_are_not_numbers_are_background(tmp_path):
    voxels = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    voxels[2, 3, 0], voxels[4, 5, 1] = np.nan, np.inf
    dataset = read(tmp_path, save(tmp_path / "a.nii", voxels), size=8)
    assert dataset[0][0, 7 - 3, 7 - 2] == -1
    assert dataset[1][0, 7 - 5, 7 - 4] == -1


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 1, 1, 1)])
def test_a_single_slice_is_read_whatever_its_number_of_axes(tmp_path, shape):
    voxels = np.random.default_rng(0).random(shape).astype(np.float32)
    dataset = read(tmp_path, save(tmp_path / "a.nii", voxels), size=9)
    assert len(dataset) == 1
    expected = expected_image(voxels.reshape(9, 9)[::-1, ::-1].T, voxels)
    np.testing.assert_allclose(dataset[0][0].numpy(), expected, atol=2e-5)


def test_slices_with_little_foreground_are_left_out(tmp_path):
    voxels = np.zeros((10, 10, 4), np.float32)
    for index, bright in enumerate((0, 9, 10, 100)):
        voxels[..., index].flat[:bright] = 100
    path = save(tmp_path / "a.nii", voxels)
    kept = read(tmp_path, path, size=10, min_foreground=0.1, normalize="full")
    assert [info.index for info in kept.slices] == [2, 3]
    assert kept.seen == 4
    assert len(read(tmp_path, path, size=10, min_foreground=0, normalize="full")) == 4


def test_no_slice_with_foreground_is_an_error_with_the_count_and_the_option(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((10, 10, 7), np.float32))
    with pytest.raises(DataError, match=r"a\.nii: none of the 7 slices .* lower min_foreground"):
        read(tmp_path, path, min_foreground=0.1)


@pytest.mark.parametrize("source", ["example4d.nii.gz", "anatomical.nii"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.0005, 0.0])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, source, share):
    content = (data_path / source).read_bytes()
    path = tmp_path / f"broken-{source}"
    path.write_bytes(content[: int(share * len(content))])
    reason = rf"{path.name}: (cannot be read as NIfTI|is (damaged or )?truncated|is empty).* set on_error to skip"
    with pytest.raises(DataError, match=reason):
        read(tmp_path, path)


def test_a_text_file_with_the_name_of_a_volume_is_an_error(tmp_path):
    path = tmp_path / "a.nii"
    path.write_text("not a volume\n" * 100)
    with pytest.raises(DataError, match=r"a\.nii: is not a NIfTI file"):
        read(tmp_path, path)


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.zeros((4, 4, 4), np.complex64), "complex64 voxels; real numbers or 8-bit colours are needed"),
        (np.zeros((4, 4, 4, 2, 3), np.float32), r"shape \(4, 4, 4, 2, 3\); a volume has 3 axes"),
    ],
)
def test_volumes_that_are_not_grey_images_are_errors(tmp_path, voxels, reason):
    with pytest.raises(DataError, match=rf"a\.nii: has .*{reason}"):
        read(tmp_path, save(tmp_path / "a.nii", voxels))


def test_a_surface_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"row_major\.dconn\.nii: holds no volume"):
        read(tmp_path, data_path / "row_major.dconn.nii")


def test_side_views_of_a_single_slice_are_an_error(tmp_path):
    path = save(tmp_path / "a.nii", np.ones((8, 8, 1), np.float32))
    with pytest.raises(DataError, match=r"a\.nii: the centre square .* choose other axes"):
        read(tmp_path, path, axes=["coronal"])
