"""SliceDataset as a whole: skipping, limits, loaders, and volumes in memory."""

import csv
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.testing import data_path
from PIL import Image
from pydicom.data import get_testdata_file

from vmddpm.data import DataConfig, DataError, SliceDataset, from_volumes
from vmddpm.data.remarks import summary, write_remarks


@pytest.fixture
def folder(tmp_path):
    """A volume of 4 slices, a DICOM file, a picture, and three broken files."""
    root = tmp_path / "images"
    root.mkdir()
    voxels = np.random.default_rng(0).random((16, 16, 4, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / "a.nii.gz")
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), root / "b.dcm")
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(root / "c.png")
    content = (data_path / "example4d.nii.gz").read_bytes()
    # Long enough for the first frame, whose slices must be removed again.
    (root / "b-cut.nii.gz").write_bytes(content[: int(0.8 * len(content))])
    (root / "notes.dcm").write_text("notes\n" * 100)
    (root / "empty.png").write_bytes(b"")
    return root


def read(folder, **options):
    options = {"cache_dir": str(folder.parent / "cache"), "size": 16, **options}
    return SliceDataset(DataConfig(root=str(folder), **options))


def test_by_default_a_broken_file_fails_the_run_by_name(folder):
    with pytest.raises(DataError, match=r"b-cut\.nii\.gz: cannot be read as NIfTI.* set on_error to skip"):
        read(folder)


def test_broken_files_are_skipped_as_a_whole_and_listed(folder):
    for _ in range(2):  # decoded, then from the cache
        reasons = "1 cannot be read as NIfTI; 1 is empty; 1 is not a DICOM file"
        with pytest.warns(UserWarning, match=f"^3 files could not be read and were skipped: {reasons}$"):
            dataset = read(folder, on_error="skip")
        assert len(dataset) == dataset.seen == 8 + 1 + 1
        assert [info.path.rsplit("/")[-1] for info in dataset.slices] == ["a.nii.gz"] * 8 + ["b.dcm", "c.png"]
        assert len(dataset.skipped) == 3
        for entry, name in zip(dataset.skipped, ("b-cut.nii.gz", "empty.png", "notes.dcm")):
            assert entry.startswith(f"{folder / name}: ")
        # Files after a removed one keep their places.
        np.testing.assert_allclose(dataset[9].numpy(), 200 / 127.5 - 1, atol=2e-5)


def test_skipped_files_are_summarised_by_reason_and_all_listed_in_a_table(folder, tmp_path):
    for number in range(40):
        (folder / f"x{number}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"^43 files could not be read and were skipped: 41 is empty; 1 .*; 1 .*$"):
        dataset = read(folder, on_error="skip")
    assert len(dataset.skipped) == 43
    lines = [line for line in summary(dataset.remarks) if line.startswith("skipped: ")]
    assert len(lines) == 3
    assert f"skipped: 41 files, is empty; the first is {folder / 'empty.png'}: is empty" in lines
    write_remarks(dataset.remarks, tmp_path / "remarks.csv")
    with open(tmp_path / "remarks.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "error"]
    assert [f"{row['source']}: {row['reason']}" for row in rows] == dataset.skipped


def test_colour_converted_to_grey_is_reported(tmp_path):
    """No remark on a grey picture that is stored in colour."""
    (tmp_path / "images").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "images" / "grey.png")
    Image.fromarray(np.stack([grey, grey, grey.T], -1)).save(tmp_path / "images" / "red.png")
    dataset = read(tmp_path / "images", min_foreground=0.0)
    assert summary(dataset.remarks) == [
        f"note: 1 slice of 1 file, colour converted to grey; channels 3 keeps it ({tmp_path / 'images' / 'red.png'})"
    ]
    assert not read(tmp_path / "images", min_foreground=0.0, channels=3).remarks


def test_nothing_but_broken_files_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.nii"):
        (tmp_path / "images" / name).write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"no image is left of 2 files:\n  .*a\.png: .*\n  .*b\.nii: "):
        read(tmp_path / "images", on_error="skip")


def test_limit_keeps_the_first_slices_and_reads_no_further(folder):
    dataset = read(folder, limit=5)
    assert [(info.frame, info.index) for info in dataset.slices] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_a_loader_gives_batches(folder):
    dataset = read(folder, pattern="[ac].*", channels=3)
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 16, 16), (4, 3, 16, 16), (1, 3, 16, 16)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_progress_shows_a_bar(folder, capsys):
    read(folder, pattern="c.png")
    assert "decoding" not in capsys.readouterr().err
    SliceDataset(
        DataConfig(root=str(folder / "c.png"), cache_dir=str(folder.parent / "cache")), progress=True
    )
    assert "decoding: 100%" in capsys.readouterr().err


def test_volumes_in_memory_give_the_same_images_as_files(folder):
    config = DataConfig(size=16, axes=["axial", "sagittal"], min_foreground=0)
    image = nib.load(folder / "a.nii.gz")
    from_file = read(folder, pattern="a.*", axes=["axial", "sagittal"], min_foreground=0)
    voxels = image.get_fdata(dtype=np.float32)
    for volume in (image, voxels, torch.from_numpy(voxels)):
        dataset = from_volumes([volume], config)
        assert isinstance(dataset, SliceDataset)
        assert len(dataset) == len(from_file) == (4 + 16) * 2
        assert all((dataset[i] == from_file[i]).all() for i in range(len(dataset)))
        assert {info.path for info in dataset.slices} == {"volume 0"}


def test_volumes_in_memory_may_come_one_by_one_and_stop_at_the_limit():
    taken = []

    def volumes():
        for number in range(100):
            taken.append(number)
            yield np.random.default_rng(number).random((8, 8, 3))

    dataset = from_volumes(volumes(), DataConfig(size=8, limit=5))
    assert [info.path for info in dataset.slices] == ["volume 0"] * 3 + ["volume 1"] * 2
    assert taken == [0, 1]


def test_an_invalid_volume_in_memory_is_named():
    good, bad = np.random.default_rng(0).random((8, 8, 3)), np.zeros(8)
    with pytest.raises(DataError, match=r"volume 1: has shape \(8,\)"):
        from_volumes([good, bad], DataConfig(size=8))
    with pytest.warns(UserWarning, match="volume 1: has shape"):
        dataset = from_volumes([good, bad, good], DataConfig(size=8, on_error="skip"))
    assert [info.path for info in dataset.slices] == ["volume 0"] * 3 + ["volume 2"] * 3
    with pytest.raises(DataError, match="the volumes in memory: there is nothing to read"):
        from_volumes([])
