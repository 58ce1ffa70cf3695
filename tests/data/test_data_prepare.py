"""Stores: data sets in their owners' layouts, with one process or two; splits; faults of a store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import trees
from PIL import Image
from pydicom.data import get_testdata_file

from vmddpm.cli import main
from vmddpm.data import DataConfig, DataError, SliceDataset
from vmddpm.data.check import check_store
from vmddpm.data.prepare import in_order
from vmddpm.data.store import read_store, split_of, write_records

SMALL = ("--data.size", "32")


def prepare(capsys, *arguments):
    """Run the command; returns its output."""
    code = main(["prepare", *map(str, arguments)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def refused(capsys, *arguments):
    assert main(["prepare", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def content(store):
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.fixture
def acdc(tmp_path):
    return trees.acdc(tmp_path / "ACDC", 4)


def test_acdc(acdc, tmp_path, capsys):
    text = prepare(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL, "--processes", 1)
    assert "192 images of 192 slices read; the paper has 1,798" in text  # 4 patients, 2 frames, 24 slices
    assert "train: 192 images of 4 patients" in text
    images, slices, record = read_store(tmp_path / "store")
    assert [info.source for info in slices[::24]] == [
        f"patient{p:03d}/patient{p:03d}_frame{f:02d}.nii.gz" for p in range(1, 5) for f in (1, 2)
    ]
    assert {info.patient for info in slices} == {f"patient{p:03d}" for p in range(1, 5)}
    assert [info.index for info in slices[:24]] == list(range(24))
    assert record["options"]["size"] == 32
    assert np.load(tmp_path / "store" / "images.npy", mmap_mode="r").shape == (192, 1, 32, 32)
    digest = subprocess.run(["sha256sum", acdc / "training" / slices[0].source], capture_output=True, text=True)
    assert slices[0].source_sha256 == digest.stdout.split()[0]
    assert slices[5].crc32 == zlib.crc32(images[5].tobytes())
    assert slices[0].black < slices[0].white

    # The same images as training reads directly from the files.
    options = {"size": 32, "min_foreground": 0.0}
    files = SliceDataset(DataConfig(root=str(acdc), pattern="*_frame[0-9][0-9].nii.gz",
                                    cache_dir=str(tmp_path / "cache"), **options))  # fmt: skip
    store = SliceDataset(DataConfig(root=str(tmp_path / "store"), **options))
    assert len(files) == len(store) == 192
    assert all(np.array_equal(files[i], store[i]) for i in range(192))


def test_acdc_cine_and_what_may_be_missing(acdc, tmp_path, capsys):
    text = prepare(capsys, "acdc", acdc / "training", "--out", tmp_path / "cine", "--frames", "cine", *SMALL)
    assert "192 images" in text
    slices = read_store(tmp_path / "cine")[1]
    assert {info.source.split("_")[-1] for info in slices} == {"4d.nii.gz"}
    assert {info.frame for info in slices} == {0, 1}
    (acdc / "training" / "patient002" / "patient002_frame02.nii.gz").unlink()
    assert "patient002: holds no patient002_frame02.nii.gz" in refused(capsys, "acdc", acdc, "--out", tmp_path / "a")
    (acdc / "training" / "patient001" / "Info.cfg").write_text("Group: NOR\n")
    assert "has no lines `ED: <frame>`" in refused(capsys, "acdc", acdc, "--out", tmp_path / "a")
    (acdc / "training" / "patient001" / "Info.cfg").unlink()
    assert "Info.cfg: cannot be read" in refused(capsys, "acdc", acdc, "--out", tmp_path / "a")
    assert "is not ACDC's training folder" in refused(capsys, "acdc", tmp_path, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_brats2018(tmp_path, capsys):
    names = ["Brats18_2013_10_1", "Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB_2"]
    root = trees.brats2018(tmp_path / "MICCAI_BraTS_2018_Data_Training", names)
    text = prepare(capsys, "brats", tmp_path, "--out", tmp_path / "flair", *SMALL)
    assert "the paper has 6,528" in text
    slices = read_store(tmp_path / "flair")[1]
    assert {info.source.rsplit("_")[-1] for info in slices} == {"flair.nii.gz"}
    assert {info.patient for info in slices} == {"Brats18_2013_10", "Brats18_CBICA_AAB"}  # two scans of one patient
    assert {info.axis for info in slices} == {"axial"}
    prepare(capsys, "brats", root, "--out", tmp_path / "t2", "--modality", "t2", "--data.size", 64)
    assert {info.source.rsplit("_")[-1] for info in read_store(tmp_path / "t2")[1]} == {"t2.nii.gz"}
    assert "is not BraTS's training folder" in refused(capsys, "brats", root / "HGG" / names[0], "--out", "x")


def test_chestxray_archives_next_to_pictures_are_reported(tmp_path):
    root = trees.chestxray(tmp_path / "nih", [1, 1], size=32)
    trees.chestxray(root, [2], 1, size=32)
    options = ("--data.size", "32", "--processes", "1")
    assert main(["prepare", "chestxray", str(root), "--out", str(tmp_path / "store"), *options]) == 0
    (remark,) = read_store(tmp_path / "store")[2]["remarks"]
    assert (remark["source"], remark["files"]) == ("images_001.tar.gz", 1)
    assert "archives next to PNG files; only the PNG files are read" in remark["reason"]


@pytest.mark.parametrize("archives", [0, 3])
def test_chestxray(tmp_path, capsys, archives):
    root = trees.chestxray(tmp_path / "nih", [3, 1, 2, 1], archives, size=256)
    text = prepare(capsys, "chestxray", root, "--out", tmp_path / "store", *SMALL)
    assert "7 images of 7 slices read; the paper has 34,999" in text
    images, slices, record = read_store(tmp_path / "store")
    names = [f"{p:08d}_{i:03d}" for p, i in ((1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1), (4, 0))]
    assert [info.source.split("/")[-1] for info in slices] == [f"{name}.png" for name in names]
    assert [info.patient for info in slices] == [name[:8] for name in names]
    assert record["options"]["limit"] == 34_999
    for number, image in enumerate(images):
        expected = trees.xray(number, 256).resize((32, 32), Image.Resampling.BILINEAR)  # Pillow's antialiasing
        assert np.abs(image[0] / 257 - np.asarray(expected, float)).max() < 1
    prepare(capsys, "chestxray", root, "--out", tmp_path / "first", *SMALL, "--data.limit", 4)
    assert [info.source.split("/")[-1] for info in read_store(tmp_path / "first")[1]] == [f"{n}.png" for n in names[:4]]


def test_the_table_gives_the_patient_of_an_x_ray_and_damage_is_named(tmp_path, capsys):
    root = trees.chestxray(tmp_path / "nih", [1, 1], 1, size=64)
    table = root / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("_000.png,No Finding,000,2,", "_000.png,No Finding,000,1,"))
    prepare(capsys, "chestxray", root, "--out", tmp_path / "store", *SMALL)
    assert [info.patient for info in read_store(tmp_path / "store")[1]] == ["00000001", "00000001"]
    archive = root / "images_001.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-200])
    error = refused(capsys, "chestxray", root, "--out", tmp_path / "again", *SMALL)
    assert "images_001.tar.gz: the archive is damaged" in error
    assert not any((tmp_path / "again").iterdir())


def test_any_folder_and_the_patients_of_its_files(tmp_path, capsys):
    scans = tmp_path / "scans"
    for folder in ("a", "b"):
        (scans / folder).mkdir(parents=True)
        for number in (1, 2):
            trees.xray(number, 64).save(scans / folder / f"sub-{number}_view.png")
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm"):
        shutil.copy(get_testdata_file(name, download=False), scans)
    prepare(capsys, "folder", scans, "--out", tmp_path / "store", *SMALL)
    slices = read_store(tmp_path / "store")[1]
    patients = {info.source: info.patient for info in slices}
    assert patients["a/sub-1_view.png"] == patients["a/sub-2_view.png"] == "a"
    assert patients["MR_small.dcm"] == patients["MR_small_RLE.dcm"] != patients["CT_small.dcm"]
    assert patients["CT_small.dcm"].startswith("dicom-")
    options = ("--data.pattern", "*.png", *SMALL, "--patient", "(sub-[0-9]+)")
    prepare(capsys, "folder", scans, "--out", tmp_path / "by-name", *options)
    assert {info.patient for info in read_store(tmp_path / "by-name")[1]} == {"sub-1", "sub-2"}
    error = refused(capsys, "folder", scans, "--out", tmp_path / "none", "--patient", "(ses-[0-9]+)")
    assert "captures no group in it" in error


def test_processes_do_not_change_a_store(acdc, tmp_path, capsys):
    for processes in (1, 2):
        prepare(capsys, "acdc", acdc, "--out", tmp_path / str(processes), *SMALL, "--test-share", 0.5,
                "--processes", processes)  # fmt: skip
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert sorted(content(tmp_path / "1")) == ["images.npy", "manifest.jsonl", "store.json"]


def test_sides_are_of_patients_and_stay(acdc, tmp_path, capsys):
    prepare(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL, "--test-share", 0.5)
    splits = {}
    for split in ("train", "test", "all"):
        dataset = SliceDataset(DataConfig(root=str(tmp_path / "store"), size=32, split=split))
        splits[split] = {info.path.split("/")[0] for info in dataset.slices}
        assert len(dataset) == 48 * len(splits[split])
    assert splits["train"] | splits["test"] == splits["all"]
    assert not splits["train"] & splits["test"]
    many = [split_of(f"patient{p}", 0.2) for p in range(2000)]
    assert abs(many.count("test") - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5
    assert all(split_of(f"patient{p}", 0.3) == "test" for p in range(2000) if many[p] == "test")


@pytest.mark.parametrize(("options", "words"), [
    ({"size": 64}, "1 channels and 32 pixels a side, but channels is 1 and size 64"),
    ({"size": 32, "channels": 3}, "set both to the store's"),
    ({"size": 32, "split": "test"}, "no image in its test split"),
])  # fmt: skip
def test_a_store_of_other_images_is_refused(acdc, tmp_path, capsys, options, words):
    prepare(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL)
    with pytest.raises(DataError, match=words):
        SliceDataset(DataConfig(root=str(tmp_path / "store"), **options))
    with pytest.raises(DataError, match="has no test split"):
        SliceDataset(DataConfig(root=str(acdc), split="test"))


def test_bad_files_and_folders(acdc, tmp_path, capsys):
    cut = acdc / "training" / "patient003" / "patient003_frame01.nii.gz"
    cut.write_bytes(cut.read_bytes()[:5000])
    error = refused(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL)
    assert "patient003/patient003_frame01.nii.gz: cannot be read as NIfTI" in error
    assert "set on_error to skip" in error
    text = prepare(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL, "--data.on_error", "skip")
    assert "168 images of 168 slices" in text
    assert "skipped: patient003/patient003_frame01.nii.gz" in text
    assert "is not empty" in refused(capsys, "acdc", acdc, "--out", tmp_path / "store")
    assert "test_share is 1.0" in refused(capsys, "acdc", acdc, "--out", tmp_path / "b", "--test-share", 1)


def test_a_full_disk_leaves_no_half_store(acdc, small_disk, capsys):
    error = refused(capsys, "acdc", acdc, "--out", small_disk / "store", "--data.size", 128)  # 6.3 MB of images
    assert "store: the store cannot be written (No space left on device); make room there" in error
    assert not any((small_disk / "store").iterdir())


def test_a_store_that_is_damaged(acdc, tmp_path, capsys):
    prepare(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL)
    config = DataConfig(root=str(tmp_path / "store"), size=32)
    whole = content(tmp_path / "store")
    images = tmp_path / "store" / "images.npy"

    dataset = SliceDataset(config)  # opened before the file is damaged, as in a run
    with open(images, "rb+") as file:
        file.seek(128 + 2048 * 7 + 100)
        file.write(b"\xff\xff")
    assert dataset[6].shape == (1, 32, 32)
    with pytest.raises(DataError, match=r"images\.npy: image 7 is damaged"):
        dataset[7]
    os.truncate(images, 128 + 2048 * 100)
    with pytest.raises(DataError, match=r"images\.npy: image 150 is missing: the file was truncated"):
        dataset[150]
    with pytest.raises(DataError, match=r"the store is damaged .* prepare it again"):
        SliceDataset(config)
    images.unlink()
    assert dataset[6].shape == (1, 32, 32)  # an open file outlives its name
    with pytest.raises(DataError, match="No such file"):
        SliceDataset(config)
    images.write_bytes(whole["images.npy"])
    (tmp_path / "store" / "manifest.jsonl").write_bytes(whole["manifest.jsonl"][:-20])
    with pytest.raises(DataError, match=r"manifest\.jsonl was changed"):
        SliceDataset(config)
    record = json.loads(whole["store.json"])
    (tmp_path / "store" / "store.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(DataError, match="another version"):
        SliceDataset(config)


def kill_own_process(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_is_killed_is_an_error():
    with pytest.raises(DataError, match="a worker process was killed"):
        list(in_order(kill_own_process, range(100), 2))
    assert list(in_order(abs, range(-50, 0), 2)) == list(range(50, 0, -1))


def test_workers_do_not_outlive_a_killed_parent():
    code = (
        "import os, time; from vmddpm.data.prepare import in_order\n"
        "def work(i): os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)\n"
        "list(in_order(work, range(4), 2))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_leftovers_of_an_interrupted_prepare_are_reported_and_removed(acdc, tmp_path, capsys):
    code = (
        "import sys, time; from vmddpm.data import prepare; from vmddpm.cli import main\n"
        "def work(*a): print('working', flush=True); time.sleep(60)\n"
        "prepare.write_records = work; main(['prepare', 'acdc', *sys.argv[1:]])"
    )
    arguments = [str(word) for word in ("acdc", acdc, "--out", tmp_path / "store", *SMALL)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as other:
        assert other.stdout.readline() == b"working\n"
        assert "another `vmddpm prepare` is using" in refused(capsys, *arguments)
        other.kill()
    assert (tmp_path / "store" / "images.npy").exists()
    (tmp_path / "store" / ".images.npy.0123456789ab-1-00000000.tmp.npy").write_bytes(b"")  # another machine's, of today
    assert "another `vmddpm prepare` is using" in refused(capsys, *arguments)
    os.utime(tmp_path / "store" / ".images.npy.0123456789ab-1-00000000.tmp.npy", (0, 0))
    assert main(["prepare", *arguments]) == 0
    assert "the files of an interrupted prepare are removed; it starts again" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "images.npy", "manifest.jsonl", "store.json"
    ]  # fmt: skip
    (tmp_path / "mine").mkdir()
    for name in ("images.npy", ".notes.0123456789ab-1-00000000.tmp"):  # not all of it belongs to a store
        (tmp_path / "mine" / name).write_bytes(b"")
    arguments[3] = str(tmp_path / "mine")
    assert "is not empty; choose another folder" in refused(capsys, *arguments)
    assert len(list((tmp_path / "mine").iterdir())) == 2


def test_check_finds_nothing_in_a_clean_store(acdc, tmp_path, capsys):
    prepare(capsys, "acdc", acdc, "--out", tmp_path / "store", *SMALL, "--test-share", 0.5)
    assert main(["data", "check", str(tmp_path / "store")]) == 0
    assert "exact duplicates under two patients' names: 0" in capsys.readouterr().out


def test_check_finds_leaks_duplicates_and_damage(tmp_path, capsys):
    """One picture is also present under another patient's name, once unchanged and once a little brighter."""
    scans = tmp_path / "scans"
    for number in range(6):
        (scans / f"p{number}").mkdir(parents=True)
        trees.xray(number, 64).save(scans / f"p{number}" / "0.png")
    shutil.copy(scans / "p1" / "0.png", scans / "p4" / "1.png")
    brighter = np.asarray(Image.open(scans / "p2" / "0.png")).astype(int) + 3
    Image.fromarray(np.clip(brighter, 0, 255).astype(np.uint8)).save(scans / "p5" / "1.png")
    shutil.copy(scans / "p0" / "0.png", scans / "p0" / "again.png")  # the same patient: no leak
    store = tmp_path / "store"
    prepare(capsys, "folder", scans, "--out", store, *SMALL, "--data.min_foreground", 0)
    found, slices = check_store(store, progress=False)
    exact, near = ([tuple(slices[i].source for i in pair) for pair in pairs] for pairs in (found.exact, found.near))
    assert exact == [("p1/0.png", "p4/1.png")]
    assert near == [("p2/0.png", "p5/1.png")]
    assert not found.shared_patients

    _, slices, record = read_store(store)
    leaking = [info if i % 2 else type(info)(**{**vars(info), "split": "test"}) for i, info in enumerate(slices)]
    write_records(store, leaking, record, store / "store.json")
    with open(store / "images.npy", "rb+") as file:
        file.seek(128 + 2048 * 3)
        file.write(b"\x01\x02\x03")
    assert main(["data", "check", str(scans)]) == 1
    assert f"{scans}: is not a store" in capsys.readouterr().err
    assert main(["data", "check", str(store)]) == 1
    captured = capsys.readouterr()
    assert "patients in both splits: 3" in captured.out
    assert "damaged images: 1" in captured.out
    assert "image 3 is damaged" in captured.out
    assert "problems were found" in captured.err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    """Peak memory of a whole `vmddpm prepare`, without its workers, for 100 and for 600 files."""
    peaks = []
    for count in (100, 600):
        root = trees.chestxray(tmp_path / str(count), [count], size=256)
        code = (
            "import resource, sys; from vmddpm.cli import main\n"
            f"assert main(['prepare', 'chestxray', {str(root)!r}, '--out', {str(tmp_path / f'store{count}')!r}]) == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 8  # MiB; 500 images of the store are 16
