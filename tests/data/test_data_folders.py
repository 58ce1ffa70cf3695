"""Real-world folders: pipes, devices, discs, duplicates, names that are not text, patients hard to tell apart."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trees
from made import make_dicom
from PIL import Image
from pydicom.data import get_testdata_file

from vmddpm.cli import main
from vmddpm.data import DataConfig, DataError, SliceDataset
from vmddpm.data.files import find
from vmddpm.data.layouts import chestxray
from vmddpm.data.patients import dicom_patient, similar_names
from vmddpm.data.remarks import summary
from vmddpm.data.store import read_store

SMALL = ("--data.size", "32", "--data.min_foreground", "0", "--processes", "1")
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)


def call(capsys, *arguments):
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)).save(path)
    return path


def prepared_store(capsys, scans, out, *options):
    code, text, error = call(capsys, "prepare", "folder", scans, "--out", out, *SMALL, *options)
    assert code == 0, error
    return text, read_store(out)[1]


@pytest.fixture
def scans(tmp_path):
    picture(tmp_path / "scans" / "p1" / "a.png")
    return tmp_path / "scans"


@pytest.fixture(autouse=True)
def time_limit():
    """Fails a test whose reader blocks on a pipe."""

    def fail(*_):
        raise TimeoutError("a reader waits")

    signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)


def test_pipes_devices_and_sockets_are_never_opened(scans, tmp_path, capsys):
    os.mkfifo(scans / "p1" / "b.png")
    os.mkfifo(scans / "scan.nii.gz")
    (scans / "endless.dcm").symlink_to("/dev/zero")
    (scans / "link.png").symlink_to(scans / "p1" / "b.png")
    text, slices = prepared_store(capsys, scans, tmp_path / "store")
    assert [info.source for info in slices] == ["p1/a.png"]
    assert "left out: 3 files, a named pipe, not a file (link.png ...)" in text
    assert "left out: 1 file, a device, not a file (endless.dcm)" in text
    code, text, _ = call(capsys, "data", "check", tmp_path / "store")
    assert code == 0
    assert "left out: 3 files, a named pipe, not a file" in text
    dataset = SliceDataset(DataConfig(root=str(scans), cache_dir=str(tmp_path / "cache"), min_foreground=0))
    assert len(dataset) == 1
    assert len(dataset.remarks) == 2
    for name, words in (("scan.nii.gz", "is a named pipe"), ("endless.dcm", "is a device")):
        code, _, error = call(capsys, "prepare", "folder", scans / name, "--out", tmp_path / "other")
        assert code == 1
        assert f"{name}: {words}; name an image or a folder of images" in error


def test_pipes_in_place_of_what_a_data_set_needs_are_named(tmp_path, capsys):
    acdc = trees.acdc(tmp_path / "ACDC", 1)
    info = acdc / "training" / "patient001" / "Info.cfg"
    info.unlink()
    os.mkfifo(info)
    code, _, error = call(capsys, "prepare", "acdc", acdc, "--out", tmp_path / "a")
    assert code == 1
    assert "Info.cfg: cannot be read (is a named pipe, not a file; remove it)" in error
    root = trees.chestxray(tmp_path / "nih", [1, 1], 1, size=64)
    for name in ("images_001.tar.gz", "Data_Entry_2017.csv"):
        (root / name).unlink()
        os.mkfifo(root / name)
        code, _, error = call(capsys, "prepare", "chestxray", root, "--out", tmp_path / "b", *SMALL)
        assert code == 1
        assert (
            f"{name}: is a named pipe, not a file; remove it" in error
            or f"{name}: cannot be read (is a named pipe" in error
        )
    root = trees.chestxray(tmp_path / "unpacked", [1, 1], 0, size=64)
    (one, _) = sorted(root.rglob("*.png"))
    one.unlink()
    os.mkfifo(one)
    code, _, error = call(capsys, "prepare", "chestxray", root, "--out", tmp_path / "c", *SMALL)
    assert code == 1
    assert "00000001_000.png: is a named pipe, not a file" in error


def test_names_that_are_no_text(scans, tmp_path):
    """Run by the command in its own process, with UTF-8 output."""
    folder = os.fsencode(scans) + b"/pati\xebnt"
    os.mkdir(folder)
    shutil.copy(scans / "p1" / "a.png", folder + b"/sc\xe4n.png")
    with open(folder + b"/dam\xe4ged.png", "wb") as file:
        file.write(b"rubbish")
    command = [sys.executable, "-m", "vmddpm.cli", "prepare", "folder", str(scans), "--out", str(tmp_path / "store"),
               *SMALL, "--data.on_error", "skip", "--test-share", "0.5"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "skipped: pati\\udcebnt/dam\\udce4ged.png: cannot be read as an image" in done.stdout
    _, slices, record = read_store(tmp_path / "store")
    assert [os.fsencode(info.source) for info in slices] == [b"p1/a.png", b"pati\xebnt/sc\xe4n.png"]
    assert len({info.patient for info in slices}) == 2
    assert os.fsencode(record["remarks"][0]["source"]) == b"pati\xebnt/dam\xe4ged.png"
    dataset = SliceDataset(DataConfig(root=str(tmp_path / "store"), size=32, split="all"))
    assert len(dataset) == 2
    with pytest.warns(UserWarning, match=r"could not be read.*pati.udcebnt"):
        files = SliceDataset(DataConfig(root=str(scans), size=32, min_foreground=0, cache_dir=str(tmp_path / "cache"),
                                        on_error="skip"))  # fmt: skip
    assert len(files) == 2


@pytest.mark.parametrize(("options", "words"), [
    (("--data.max_members", "1"), "holds more than max_members 1 files; if that is right, raise max_members"),
    (("--data.max_pixels", "100"), "holds a file of .* bytes, more than 8 for each of max_pixels 100"),
])  # fmt: skip
def test_archives_have_limits(tmp_path, capsys, options, words):
    root = trees.chestxray(tmp_path / "nih", [2, 1], 1, size=64)
    code, _, error = call(capsys, "prepare", "chestxray", root, "--out", tmp_path / "store", *SMALL, *options)
    assert code == 1
    assert re.search(rf"images_001\.tar\.gz: {words}", error)


def test_an_archive_member_that_claims_to_be_huge_is_not_read(tmp_path):
    root = tmp_path / "nih"
    root.mkdir()
    with tarfile.open(root / "images_001.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("images/00000001_000.png")
        member.size = 0
        archive.addfile(member, io.BytesIO())
        header = tarfile.TarInfo("images/00000001_001.png")
        header.size = 1 << 50
        archive.fileobj.write(header.tobuf(tarfile.GNU_FORMAT))
    layout = chestxray(root, DataConfig(root=str(root)))
    with pytest.raises(DataError, match=r"images_001\.tar\.gz: holds a file of 1,125,899,906,842,624 bytes"):
        list(layout.sources)


def test_a_disc_is_read_without_options(tmp_path, capsys):
    """A disc as clinics hand it out: DICOMDIR, files without suffixes, a viewer with its pictures and programs."""
    disc, real = tmp_path / "disc", Path(get_testdata_file("MR_small.dcm", download=False)).parent / "dicomdirtests"
    shutil.copytree(real / "77654033", disc / "77654033")
    shutil.copy(real / "DICOMDIR", disc)
    (disc / "AUTORUN.INF").write_text("[autorun]\nopen=viewer.exe\n")
    for name in ("viewer.exe", "viewer/libs/codec.dll", "viewer/start", "viewer/help.html", "viewer/data.bin"):
        (disc / name).parent.mkdir(parents=True, exist_ok=True)
        (disc / name).write_bytes(b"MZ" + bytes(200))
    picture(disc / "viewer" / "icons" / "logo.png")
    text, slices = prepared_store(capsys, disc, tmp_path / "store")
    assert len(slices) == 7
    assert all("77654033" in info.source for info in slices)
    for line in ("left out: 1 file, the index of a DICOM disc (DICOMDIR)", "3 files, not DICOM, on a DICOM disc",
                 "4 files, not images by their names"):  # fmt: skip
        assert line in text


def test_the_straightened_twin_is_the_scan(tmp_path):
    voxels = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    names = ["ct.nii.gz", "ct_Tilt_1.nii.gz", "eq.nii", "eq_Eq_1.nii.gz", "both.nii", "both_Tilt.nii",
             "both_Tilt_Eq_1.nii", "alone_Tilt_1.nii", "T1.nii", "T1_Eqv.nii"]  # fmt: skip
    for name in names:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    found = find(DataConfig(root=str(tmp_path)))
    kept = ["T1.nii", "T1_Eqv.nii", "alone_Tilt_1.nii", "both_Tilt_Eq_1.nii", "ct_Tilt_1.nii.gz", "eq_Eq_1.nii.gz"]
    assert [path.name for path in found.files] == kept
    assert summary(found.left_out) == [
        "left out: 4 files, another file has the same scan resampled by dcm2niix (both.nii ...)"
    ]


def test_voxels_next_to_their_header_are_not_a_file_of_their_own(tmp_path):
    nib.Nifti1Pair(np.ones((4, 4, 2), np.float32), np.eye(4)).to_filename(tmp_path / "a.img")
    (tmp_path / "lonely.img").write_bytes(b"voxels")
    assert [path.name for path in find(DataConfig(root=str(tmp_path))).files] == ["a.hdr", "lonely.img"]
    assert find(DataConfig(root=str(tmp_path / "a.img"))).files == [tmp_path / "a.hdr"]
    with pytest.raises(DataError, match=r"lonely\.img: holds voxels, but its \.hdr is missing"):
        SliceDataset(DataConfig(root=str(tmp_path / "lonely.img"), cache_dir=str(tmp_path / "cache")))


def test_a_folder_goes_by_its_own_name_before_those_of_links(tmp_path):
    for name in ("real_b", "real_a/sub", "real_c"):
        picture(tmp_path / "scans" / name / "x.png")
    picture(tmp_path / "outside" / "x.png")
    for link, target in (("a", "real_b"), ("z", "real_c"), ("m", "../outside"), ("l", "../outside"), ("up", "..")):
        (tmp_path / "scans" / link).symlink_to(tmp_path / "scans" / target)
    found = find(DataConfig(root=str(tmp_path / "scans"))).files
    names = [path.relative_to(tmp_path / "scans").as_posix() for path in found]
    assert names == ["l/x.png", "real_a/sub/x.png", "real_b/x.png", "real_c/x.png"]


def patient(path):
    return dicom_patient(path, DataConfig())


def test_patients_of_dicom_files(tmp_path):
    def named(name, **attributes):
        return patient(make_dicom(tmp_path / name, PIXELS.astype(np.uint16), **attributes))

    one = named("a.dcm", PatientID="P-17")
    assert one.startswith("dicom-")
    assert one == named("b.dcm", PatientID=" P-17  ") != named("c.dcm", PatientID="P-18")
    bare = make_dicom(tmp_path / "d.dcm", PIXELS.astype(np.uint16), PatientID="P-17")
    bare.write_bytes(bare.read_bytes()[132:])
    assert patient(bare) == one
    study = named("e.dcm", PatientID="", StudyInstanceUID="1.2.3.4")
    assert (
        study
        == named("f.dcm", StudyInstanceUID="1.2.3.4")
        != named("g.dcm", PatientID="  ", StudyInstanceUID="1.2.3.5")
    )
    assert named("h.dcm") is None
    (tmp_path / "i.dcm").write_bytes(b"rubbish" * 100)
    assert patient(tmp_path / "i.dcm") is None
    assert patient(picture(tmp_path / "j.png")) is None


def test_slices_in_a_flat_folder_are_warned_of_and_found(tmp_path, capsys):
    scans = tmp_path / "scans"
    for p in range(6):
        for n in range(3):
            picture(scans / f"patient{p}_slice{n:02d}.png", 10 * p + n)
    code, _, error = call(
        capsys, "prepare", "folder", scans, "--out", tmp_path / "store", *SMALL, "--test-share", "0.5"
    )
    assert code == 0
    assert "warning: 18 files in the folder itself each count as one patient" in error
    assert "patient0_slice00.png and patient0_slice01.png look like one patient's" in error
    code, text, _ = call(capsys, "data", "check", tmp_path / "store")
    assert code == 1
    assert "files whose names look like one patient's, in both splits: " in text
    named = ("--out", tmp_path / "named", "--patient", "(patient[0-9]+)")
    code, _, error = call(capsys, "prepare", "folder", scans, *named, *SMALL, "--test-share", "0.5")
    assert code == 0
    assert "warning" not in error
    assert call(capsys, "data", "check", tmp_path / "named")[0] == 0


def series(path, seed, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 4000, (32, 32), np.uint16)
    return make_dicom(path, pixels, **attributes)


def test_files_next_to_a_patients_dicom_files_are_that_patients(tmp_path, capsys):
    for p in range(8):
        series(tmp_path / "scans" / f"p{p}" / "a.dcm", p, PatientID=f"P-{p}", StudyInstanceUID=f"1.2.{p}")
        series(tmp_path / "scans" / f"p{p}" / "b.dcm", 100 + p, PatientID="", StudyInstanceUID=f"1.2.{p}")
        picture(tmp_path / "scans" / f"p{p}" / "c.png", 200 + p)
    _, slices = prepared_store(capsys, tmp_path / "scans", tmp_path / "store", "--test-share", "0.5")
    folders = {}
    for info in slices:
        folders.setdefault(info.source.split("/")[0], set()).add((info.patient, info.split))
    assert [len(found) for found in folders.values()] == [1] * 8
    assert len({patient for ((patient, _),) in folders.values()}) == 8
    assert {split for ((_, split),) in folders.values()} == {"train", "test"}
    assert call(capsys, "data", "check", tmp_path / "store")[0] == 0


@pytest.mark.parametrize("names", [
    ["T1/0{p}.png", "T2/0{p}.png", "FLAIR/0{p}.png", "dwi/0{p}.png"],
    ["ses-1/case{p}/a.png", "ses-2/case{p}/a.png", "ses-3/case{p}/a.png", "ses-4/case{p}/a.png"],
    ["a/sub-{p}/a.png", "b/sub-{p}/a.png", "c/sub-{p}/a.png", "d/sub-{p}/a.png"],
    ["imagesTr/p{p}.png", "imagesTs/p{p}.png", "train/p{p}.png", "validation/p{p}.png"],
    ["siteX/00{p}/a.png", "siteY/00{p}/a.png", "siteZ/00{p}/a.png", "clinic/00{p}/a.png"],
    ["Aachen/P10{p}/T1/a.png", "Bern/P10{p}/T2/b.png", "Calais/P10{p}/c.png", "Delft/P10{p}/d.png"],
])  # fmt: skip
def test_subjects_below_other_folders_are_warned_of_and_found(tmp_path, capsys, names):
    for seed, name in enumerate(name.format(p=p) for name in names for p in range(3)):
        picture(tmp_path / "scans" / name, seed)
    options = (*SMALL, "--test-share", "0.5")
    code, _, error = call(capsys, "prepare", "folder", tmp_path / "scans", "--out", tmp_path / "store", *options)
    assert code == 0
    assert "12 files such as" in error
    assert "may be one patient's, but count as several patients" in error
    code, text, _ = call(capsys, "data", "check", tmp_path / "store")
    assert code == 1
    assert "look like one patient's, in both splits: 3" in text


def test_folders_of_many_patients_are_warned_of(tmp_path, capsys):
    for p in range(1, 9):
        picture(tmp_path / "scans" / f"site{'XY'[p // 5]}" / f"00{p}" / "a.png", p)
    code, _, error = call(capsys, "prepare", "folder", tmp_path / "scans", "--out", tmp_path / "store", *SMALL)
    assert code == 0
    assert "2 folders such as siteX each count as one patient, but their contents, such as 001 and 002" in error
    assert "may be one patient's" not in error
    options = (*SMALL, "--patient", "(site./[0-9]+)")
    code, _, error = call(capsys, "prepare", "folder", tmp_path / "scans", "--out", tmp_path / "named", *options)
    assert code == 0
    assert "warning" not in error


@pytest.mark.parametrize("parts", [
    ("T1", "T2"), ("run-01", "run-02"), ("2011-05-30", "2012-06-01"), ("left", "right"), ("5_T2_TSE", "6_T2_FLAIR"),
    ("b0", "b1000"), ("slice001", "slice002"),
])  # fmt: skip
def test_patients_with_files_of_the_same_names_are_no_suspects(tmp_path, capsys, parts):
    for seed, name in enumerate(f"p{p}/{part}/{n}.png" for p in range(6) for part in parts for n in range(2)):
        picture(tmp_path / "scans" / name, seed)
    options = (*SMALL, "--test-share", "0.5")
    code, _, error = call(capsys, "prepare", "folder", tmp_path / "scans", "--out", tmp_path / "store", *options)
    assert code == 0
    assert "warning" not in error
    assert call(capsys, "data", "check", tmp_path / "store")[0] == 0


def test_an_empty_side_is_warned_of_and_found(tmp_path, capsys):
    for p in range(4):
        picture(tmp_path / "scans" / "all" / f"p{p}" / "a.png", p)
    options = (*SMALL, "--test-share", "0.0001")
    code, _, error = call(capsys, "prepare", "folder", tmp_path / "scans", "--out", tmp_path / "store", *options)
    assert code == 0
    assert "the test split is empty: 1 patients are too few for test_share 0.0001" in error
    code, text, _ = call(capsys, "data", "check", tmp_path / "store")
    assert code == 1
    assert "empty splits: 1\n  test\n" in text


@pytest.mark.parametrize(("names", "groups"), [
    (["a_1.png", "a_2.png", "b_1.png"], [["a_1.png", "a_2.png"]]),
    (["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz", "sub-02_T1w.nii.gz"], [["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"]]),
    (["p1/a_1.png", "p1/a_2.png"], []),
    (["cat.png", "dog.png", "1.png", "2.png"], []),
    (["IM-0001-0003.dcm", "IM-0001-0004.dcm"], [["IM-0001-0003.dcm", "IM-0001-0004.dcm"]]),
])  # fmt: skip
def test_names_that_look_like_one_patients(names, groups):
    assert similar_names(names) == groups


@pytest.mark.parametrize(("names", "ending", "patients", "paper"), [
    (["HGG/Brats17_2013_10_1", "LGG/Brats17_TCIA_1"], "_flair", ["Brats17_2013_10", "Brats17_TCIA"], False),
    (["HGG/BraTS19_CBICA_AAB_1", "LGG/BraTS19_2013_0_1"], "_flair", ["BraTS19_CBICA_AAB", "BraTS19_2013_0"], False),
    (["BraTS20_Training_001", "BraTS20_Training_002"], "_flair", ["BraTS20_Training_001", "BraTS20_Training_002"],
     False),
    (["BraTS2021_00000", "BraTS2021_00002"], "_flair", ["BraTS2021_00000", "BraTS2021_00002"], False),
    (["BraTS-GLI-00003-000", "BraTS-GLI-00003-001"], "-t2f", ["BraTS-GLI-00003"] * 2, False),
    (["BraTS-MEN-00004-000", "BraTS-SSA-00002-000"], "-t2f", ["BraTS-MEN-00004", "BraTS-SSA-00002"], False),
    (["HGG/Brats18_TCIA_1_1"], "_flair", ["Brats18_TCIA_1"], True),
])  # fmt: skip
@pytest.mark.parametrize("container", ["", "MICCAI_BraTS_TrainingData"])
def test_brats_of_every_year(tmp_path, capsys, names, ending, patients, paper, container):
    brain = np.random.default_rng(0).random((12, 12, 2)).astype(np.float32) + 1
    for name in names:
        folder = tmp_path / "brats" / container / name
        folder.mkdir(parents=True)
        for suffix in (ending, "_seg", "-t1c", "_t1"):
            nib.save(nib.Nifti1Image(brain, np.eye(4)), folder / f"{folder.name}{suffix}.nii.gz")
    (tmp_path / "brats" / "BraTS2021_ValidationData" / "BraTS2021_99999").mkdir(parents=True)
    code, text, error = call(capsys, "prepare", "brats", tmp_path / "brats", "--out", tmp_path / "store", *SMALL)
    assert code == 0, error
    slices = read_store(tmp_path / "store")[1]
    assert [info.patient for info in slices[::2]] == patients
    assert [info.source for info in slices[::2]] == [f"{n}/{n.split('/')[-1]}{ending}.nii.gz" for n in names]
    assert ("the paper has 6,528" in text) is paper


def test_the_official_split_of_chestxray(tmp_path, capsys):
    root = trees.chestxray(tmp_path / "nih", [2, 1, 1], 1, size=64)
    arguments = ("prepare", "chestxray", root, *SMALL, "--official-split")
    code, _, error = call(capsys, *arguments, "--out", tmp_path / "none")
    assert (code, "holds no train_val_list.txt" in error) == (1, True)
    (root / "train_val_list.txt").write_text("\ufeff00000001_000.png\r\n00000001_001.png\r\n", encoding="utf-8")
    (root / "test_list.txt").write_text("00000002_000.png\n")
    code, _, error = call(capsys, *arguments, "--out", tmp_path / "short")
    assert (code, "00000003_000.png is in neither train_val_list.txt nor test_list.txt" in error) == (1, True)
    (root / "test_list.txt").write_text("00000002_000.png\n00000003_000.png")
    code, text, error = call(capsys, *arguments, "--out", tmp_path / "store")
    assert code == 0, error
    assert [info.split for info in read_store(tmp_path / "store")[1]] == ["train", "train", "test", "test"]
    assert "train: 2 images of 1 patient\ntest: 2 images of 2 patients" in text
    (root / "test_list.txt").write_text("00000001_000.png\n00000002_000.png\n00000003_000.png")
    code, _, error = call(capsys, *arguments, "--out", tmp_path / "both")
    assert (code, "00000001_000.png is in train_val_list.txt too" in error) == (1, True)
    code, _, error = call(capsys, *arguments, "--out", tmp_path / "both", "--test-share", "0.1")
    assert (code, "leave test-share out" in error) == (1, True)


def test_byte_order_marks(tmp_path, capsys):
    root = trees.chestxray(tmp_path / "nih", [1, 1], 1, size=64)
    table = root / "Data_Entry_2017.csv"
    rows = (
        table.read_text()
        .replace("Finding Labels", "Labels")
        .replace("_000.png,No Finding,000,2,", "_000.png,No Finding,000,1,")
    )
    table.write_text("\ufeff" + rows, encoding="utf-8")
    code, _, error = call(capsys, "prepare", "chestxray", root, "--out", tmp_path / "store", *SMALL)
    assert code == 0, error
    assert {info.patient for info in read_store(tmp_path / "store")[1]} == {"00000001"}
    acdc = trees.acdc(tmp_path / "ACDC", 1)
    info = acdc / "training" / "patient001" / "Info.cfg"
    info.write_text("\ufeff" + info.read_text(), encoding="utf-8")
    code, _, error = call(capsys, "prepare", "acdc", acdc, "--out", tmp_path / "acdc", *SMALL)
    assert code == 0, error


def test_files_left_out_are_reported_recorded_and_reported_again(tmp_path, capsys):
    scans = tmp_path / "scans"
    picture(scans / "p1" / "a.png")
    voxels = np.zeros((16, 16, 5), np.float32)
    voxels[..., 2:] = np.random.default_rng(0).random((16, 16, 3)) + 1
    (scans / "p2").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), scans / "p2" / "b.nii.gz")
    shutil.copy(get_testdata_file("rtdose.dcm", download=False), scans / "p2" / "dose.dcm")
    (scans / "p3").mkdir()
    (scans / "p3" / "c.png").write_bytes(b"rubbish")
    (scans / "notes.txt").write_text("notes")
    lines = [
        "skipped: p3/c.png: cannot be read as an image: it is damaged",
        "left out: 1 file, not images by their names (notes.txt)",
        "left out: 1 file, not an image according to its SOP class, RT Dose Storage (p2/dose.dcm)",
        "left out: 2 slices of 1 file, less than 50 % of their pixels above the background; min_foreground 0 keeps "
        "them (p2/b.nii.gz)",
    ]
    options = ("--data.size", "16", "--data.min_foreground", "0.5", "--data.on_error", "skip", "--processes", "2")
    code, text, error = call(capsys, "prepare", "folder", scans, "--out", tmp_path / "store", *options)
    assert code == 0, error
    assert "4 images of 6 slices read" in text
    code, again, _ = call(capsys, "data", "check", tmp_path / "store")
    assert code == 0
    record = json.loads((tmp_path / "store" / "store.json").read_text())
    assert sum(r["slices"] or 0 for r in record["remarks"]) == 2
    for line in lines:
        assert line in text
        assert line in again
    with pytest.warns(UserWarning, match="could not be read"):
        dataset = SliceDataset(DataConfig(root=str(scans), size=16, min_foreground=0.5, on_error="skip",
                                          cache_dir=str(tmp_path / "cache")))  # fmt: skip
    kinds = sorted(remark.kind for remark in dataset.remarks)
    assert kinds == ["class", "error", "foreground", "name"]
