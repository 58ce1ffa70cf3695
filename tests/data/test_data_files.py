"""The files that are read from a folder."""

import pytest

from vmddpm.data import DataConfig, DataError
from vmddpm.data.files import find_files


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")


def names(folder, **options):
    files = find_files(DataConfig(root=str(folder), **options))
    return [path.relative_to(folder).as_posix() for path in files]


def test_files_are_found_below_the_root_in_sorted_order(tmp_path):
    make(tmp_path, "b/2.png", "b/1.PNG", "a.nii.gz", "c/d/IM0001", "c/1.2.840.10008.5", "z.weird")
    assert names(tmp_path) == ["a.nii.gz", "b/1.PNG", "b/2.png", "c/1.2.840.10008.5", "c/d/IM0001", "z.weird"]


def test_what_is_plainly_not_an_image_and_what_is_hidden_is_left_out(tmp_path):
    make(tmp_path, "a.png", "README", "LICENSE", "notes.txt", "labels.CSV", "meta.json", "all.tar.gz")
    make(tmp_path, ".DS_Store", "._a.png", ".hidden/b.png")
    assert names(tmp_path) == ["a.png"]


def test_pattern_chooses_a_modality(tmp_path):
    make(tmp_path, "p1/p1_flair.nii.gz", "p1/p1_seg.nii.gz", "p2/p2_flair.nii.gz")
    assert names(tmp_path, pattern="*_flair.nii.gz") == ["p1/p1_flair.nii.gz", "p2/p2_flair.nii.gz"]
    with pytest.raises(DataError, match=r"none of its 3 files matches pattern '\*_t1.nii'"):
        names(tmp_path, pattern="*_t1.nii")


def test_linked_folders_are_walked_once(tmp_path):
    make(tmp_path / "store", "a.png")
    root = tmp_path / "root"
    make(root, "b.png")
    (root / "link").symlink_to(tmp_path / "store")
    (root / "link" / "loop").symlink_to(root)
    assert names(root) == ["b.png", "link/a.png"]


def test_one_file_may_be_the_root(tmp_path):
    make(tmp_path, "a.png", "notes.txt")
    assert find_files(DataConfig(root=str(tmp_path / "a.png"))) == [tmp_path / "a.png"]
    with pytest.raises(DataError, match=r"notes\.txt: is not an image by its name"):
        find_files(DataConfig(root=str(tmp_path / "notes.txt")))


def test_paths_are_absolute(tmp_path, monkeypatch):
    make(tmp_path, "images/a.png")
    monkeypatch.chdir(tmp_path)
    assert find_files(DataConfig(root="images")) == [tmp_path / "images" / "a.png"]


def test_an_empty_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no NIfTI, DICOM, PNG, .* \(0 other files\)"):
        find_files(DataConfig(root=str(tmp_path / "empty")))
    make(tmp_path, "texts/a.txt", "texts/b.csv")
    with pytest.raises(DataError, match=r"texts: holds no .* \(2 other files\)"):
        find_files(DataConfig(root=str(tmp_path / "texts")))


def test_a_missing_root_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_files(DataConfig(root=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="root is empty"):
        find_files(DataConfig())
