"""The cache: files are decoded once, changes and damage are detected, and no partial file is left."""

import errno
import json
import os
import pickle
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from vmddpm.data import DataConfig, DataError, SliceDataset, cache, dataset
from vmddpm.data.cache import decode, encode
from vmddpm.files import temporary_name


@pytest.fixture
def folder(tmp_path):
    """Three PNG files of 24 x 24 noise."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        save(tmp_path / "images" / f"{number}.png", rng)
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names = []
    original = dataset.read_file

    def counted(path, *arguments):
        names.append(path.name)
        return original(path, *arguments)

    monkeypatch.setattr(dataset, "read_file", counted)
    return names


def save(path, rng):
    Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(path)


def read(folder, **options):
    options = {"cache_dir": str(folder.parent / "cache"), "size": 24, **options}
    return SliceDataset(DataConfig(root=str(folder), **options))


def images(slices):
    return np.stack([slices[i].numpy() for i in range(len(slices))])


def test_files_are_decoded_once(folder, decoded):
    first = read(folder)
    assert decoded == ["0.png", "1.png", "2.png"]
    second = read(folder)
    assert len(decoded) == 3
    np.testing.assert_array_equal(images(first), images(second))
    assert (first.slices, first.skipped, first.seen) == (second.slices, second.skipped, second.seen)


def test_a_changed_added_or_removed_file_is_seen(folder, decoded):
    before = images(read(folder))
    save(folder / "1.png", np.random.default_rng(9))
    os.utime(folder / "1.png", ns=(1, 1))
    after = images(read(folder))
    assert len(decoded) == 6
    assert [np.array_equal(a, b) for a, b in zip(before, after)] == [True, False, True]
    save(folder / "3.png", np.random.default_rng(10))
    assert len(read(folder)) == 4
    (folder / "0.png").unlink()
    assert len(read(folder)) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"size": 12},
        {"channels": 3},
        {"normalize": "percentile"},
        {"min_foreground": 0.5},
        {"window": (90, 50)},
    ],
)
def test_another_option_is_another_entry(folder, decoded, options):
    read(folder)
    read(folder, **options)
    assert len(decoded) == 6


def test_another_version_of_a_decoder_is_another_entry(folder, decoded, monkeypatch):
    read(folder)
    monkeypatch.setattr(cache, "_version", lambda distribution: "another")
    read(folder)
    assert len(decoded) == 6


def test_changed_voxels_in_a_separate_file_are_noticed(tmp_path):
    def write(value):
        voxels = np.full((24, 24, 2), value, np.uint8)
        voxels[:12] = 0
        nib.Nifti1Pair(voxels, np.eye(4)).to_filename(tmp_path / "images" / "a.img")

    (tmp_path / "images").mkdir()
    write(100)
    (tmp_path / "images" / "a.hdr").touch()
    status = (tmp_path / "images" / "a.hdr").stat()
    first = images(read(tmp_path / "images", window=(127.5, 255), min_foreground=0))
    write(200)
    os.utime(tmp_path / "images" / "a.hdr", ns=(status.st_atime_ns, status.st_mtime_ns))
    second = images(read(tmp_path / "images", window=(127.5, 255), min_foreground=0))
    np.testing.assert_allclose(second + 1, 2 * (first + 1), atol=1e-4)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-10])


def overwrite(path):
    path.write_bytes(b"rubbish")


def empty(path):
    path.write_bytes(b"")


def drop_a_slice(path):
    manifest = json.loads(path.read_text())
    manifest["slices"].pop()
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", cut_short),
        (".npy", overwrite),
        (".npy", empty),
        (".npy", os.unlink),
        (".json", cut_short),
        (".json", overwrite),
        (".json", drop_a_slice),
    ],
)
def test_a_damaged_entry_is_built_again_with_a_notice(folder, decoded, suffix, damage):
    before = images(read(folder))
    (entry,) = (folder.parent / "cache").glob(f"*{suffix}")
    damage(entry)
    with pytest.warns(UserWarning, match="the cache is damaged and is built again"):
        again = read(folder)
    assert len(decoded) == 6
    np.testing.assert_array_equal(images(again), before)
    read(folder)
    assert len(decoded) == 6


def test_a_failed_build_leaves_nothing_behind(folder):
    (folder / "9.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"9\.png"):
        read(folder)
    assert list((folder.parent / "cache").iterdir()) == []


def test_leftovers_of_a_killed_build_are_removed_and_files_of_others_kept(folder):
    cache_dir = folder.parent / "cache"
    cache_dir.mkdir()
    ours, other = temporary_name(cache_dir / "a.npy"), cache_dir / ".mine.tmp.npy"
    gone = ours.with_name(ours.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))
    for path in (ours, other, gone):
        path.write_bytes(b"")
    read(folder)
    assert [path.exists() for path in (ours, other, gone)] == [True, True, False]


def test_a_cache_that_cannot_be_written_is_an_error_before_any_decoding(folder, decoded):
    (folder.parent / "file").write_text("")
    with pytest.raises(DataError, match=r"file: the cache cannot be written .* change cache_dir"):
        read(folder, cache_dir=str(folder.parent / "file"))
    assert decoded == []


def test_a_full_disk_is_an_error_and_no_broken_file(folder, monkeypatch):
    def fail(self, image):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.CacheWriter, "append", fail)
    with pytest.raises(DataError, match=r"cache: the cache cannot be written \(No space left on device\)"):
        read(folder, on_error="skip")
    assert list((folder.parent / "cache").iterdir()) == []


def test_the_default_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder(DataConfig()) == tmp_path / "vmddpm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder(DataConfig()) == tmp_path / "home" / ".cache" / "vmddpm"


def test_the_code_holds_8_and_16_bits():
    levels = np.arange(65536)
    np.testing.assert_array_equal(encode(levels / 32767.5 - 1), levels)
    np.testing.assert_allclose(decode(levels.astype(np.uint16)), levels / 32767.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(encode(np.arange(256) / 127.5 - 1), np.arange(256) * 257)


def test_a_worker_process_gets_the_name_of_the_map_and_not_its_content(folder):
    slices = read(folder, size=200)
    pickled = pickle.dumps(slices)
    assert len(pickled) < 10_000
    np.testing.assert_array_equal(images(pickle.loads(pickled)), images(slices))


def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 65536, (256, 256), np.uint16)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png", compress_level=0)
    tracemalloc.start()
    slices = read(tmp_path / "images", size=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(slices) * 512 * 512 * 2 > 15e6
    assert peak < 6e6
