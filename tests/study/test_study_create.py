"""Both classes are stored in one format, sampled by patient, in an order that only the key reveals."""

import json
import shutil

import numpy as np
import pytest
from nibabel.testing import data_path
from PIL import Image
from pydicom.data import get_testdata_file
from study_helpers import make_study, png_text, write_images

from vmddpm.cli import main
from vmddpm.data import DataConfig, DataError, SliceDataset
from vmddpm.files import sha256
from vmddpm.study import Study, StudyError
from vmddpm.study.blinding import differences
from vmddpm.study.create import CreateOptions, create_study, to_8_bit
from vmddpm.study.folder import load_key


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("made"))


def test_every_image_is_of_one_form(study):
    headers = set()
    for name in study.images:
        content = study.image(name).read_bytes()
        with Image.open(study.image(name)) as image:
            assert not image.info
            headers.add((len(content), image.size, image.mode, content[:33]))  # up to the end of the IHDR chunk
            assert b"tEXt" not in content
    assert headers == {(next(iter(headers))[0], (32, 32), "L", next(iter(headers))[3])}


def test_images_are_those_of_the_data_set_in_8_bits(study, tmp_path):
    key = json.loads((study.path / "key.json").read_text())
    for label in ("real", "synthetic"):
        dataset = SliceDataset(DataConfig(**key[label]))
        numbers = {info.path: number for number, info in enumerate(dataset.slices)}
        entries = [entry for entry in key["images"] if entry["class"] == label]
        assert len(entries) == len({entry["path"] for entry in entries}) == 10
        for entry in entries:
            expected = np.rint((dataset[numbers[entry["path"]]][0].numpy() + 1) * 127.5)
            with Image.open(study.image(entry["name"])) as image:
                assert np.array_equal(np.asarray(image), expected)


def test_8_bit_files_lose_nothing():
    levels = np.arange(256, dtype=np.float32).reshape(1, 16, 16)
    assert np.array_equal(to_8_bit(levels / 127.5 - 1)[..., 0], levels[0])


def test_a_seed_gives_one_study_and_none_gives_another_each_time(study, tmp_path):
    def files(made):
        return {path.name: sha256(path) for path in made.path.glob("images/*.png")}

    again = make_study(tmp_path / "again")
    assert files(again) == files(study)
    assert again.order("anna") == study.order("anna")
    drawn = [make_study(tmp_path / name, seed=None) for name in ("a", "b")]
    assert not set(drawn[0].images) & set(drawn[1].images)


def test_each_reader_has_an_order_of_her_own(study):
    orders = {reader: study.order(reader) for reader in ("anna", "ben", "carla")}
    assert len({tuple(order) for order in orders.values()}) == 3
    assert all(sorted(order) == study.images for order in orders.values())
    assert study.order("anna") == orders["anna"]


def test_what_the_server_reads_names_no_class(study):
    text = (study.path / "study.json").read_text()
    key = json.loads((study.path / "key.json").read_text())
    assert "hospital" not in text
    assert "generated" not in text
    assert str(key["seed"]) not in json.loads(text).values()
    assert json.loads(text)["images"] == sorted(entry["name"] for entry in key["images"])
    assert (study.path / "key.json").stat().st_mode & 0o77 == 0


@pytest.fixture
def volumes(tmp_path):
    """Three patients, one with two real 4-D brains in his own folder."""
    for name in ("p1/first.nii.gz", "p1/second.nii.gz", "p2/scan.nii.gz", "p3/scan.nii.gz"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data_path / "example4d.nii.gz", tmp_path / "real" / name)
    write_images(tmp_path / "synthetic", 12, 0)
    return tmp_path


def create(folder, out="study", real="real", synthetic="synthetic", **options):
    data = {"size": 32, "min_foreground": 0.05, "cache_dir": str(folder / "cache")}
    roots = (DataConfig(root=str(folder / name), **data) for name in (real, synthetic))
    create_study(*roots, folder / out, CreateOptions(**options))
    return [e for e in json.loads((folder / out / "key.json").read_text())["images"] if e["class"] == "real"]


def test_one_slice_of_each_patient(volumes):
    chosen = create(volumes, images=3)
    assert sorted(entry["patient"] for entry in chosen) == ["p1", "p2", "p3"]
    with pytest.raises(StudyError, match=r"only 3 real images .* 3 patients.*more slices"):
        create(volumes, "more", images=4)
    chosen = create(volumes, "pairs", images=5, slices=2)
    assert sorted(sum(entry["patient"] == p for entry in chosen) for p in ("p1", "p2", "p3")) == [1, 2, 2]
    chosen = create(volumes, "files", images=4, patient=r"(.*)\.nii")
    assert len({entry["path"] for entry in chosen}) == 4


def test_a_store_knows_its_patients_and_sides(volumes, capsys):
    for number in range(4, 12):
        (volumes / "real" / f"p{number}").mkdir()
        shutil.copy(data_path / "example4d.nii.gz", volumes / "real" / f"p{number}" / "scan.nii.gz")
    prepare = ["prepare", "folder", volumes / "real", "--out", volumes / "store", "--test-share", 0.5, "--processes", 1,
               "--data.size", 32, "--data.min_foreground", 0.05]  # fmt: skip
    assert main([str(word) for word in prepare]) == 0
    made = ["study", "create", "--real", volumes / "store", "--synthetic", volumes / "synthetic", "--data.size", 32,
            "--data.split", "test", "--data.cache_dir", volumes / "cache", "--images"]  # fmt: skip
    lines = [json.loads(line) for line in (volumes / "store" / "manifest.jsonl").read_text().splitlines()]
    side = {line["patient"] for line in lines if line["split"] == "test"}
    assert 0 < len(side) < 11
    assert main([*map(str, made), str(len(side)), "--out", str(volumes / "study")]) == 0
    key = json.loads((volumes / "study" / "key.json").read_text())
    assert {entry["patient"] for entry in key["images"] if entry["class"] == "real"} == side
    assert main([*map(str, made), str(len(side) + 1), "--out", str(volumes / "more")]) == 1
    assert f"{len(side)} patients" in capsys.readouterr().err
    assert main([*map(str, made), "1", "--patient", "(p)", "--out", str(volumes / "more")]) == 1
    assert "is a store" in capsys.readouterr().err


def test_the_patient_of_dicom_files_is_in_their_headers(tmp_path):
    (tmp_path / "real").mkdir()
    for number, name in enumerate(("CT_small.dcm", "CT_small.dcm", "MR_small.dcm")):
        shutil.copy(get_testdata_file(name), tmp_path / "real" / f"{number}.dcm")
    write_images(tmp_path / "synthetic", 3, 0)
    assert {entry["patient"] for entry in create(tmp_path, images=2)} == {"1CT1", "4MR1"}
    with pytest.raises(StudyError, match="2 patients"):
        create(tmp_path, "more", images=3)


def test_unknown_patients_are_reported_as_unknown(tmp_path):
    write_images(tmp_path / "real", 3, 1)
    write_images(tmp_path / "synthetic", 3, 0)
    with pytest.warns(UserWarning, match=r"patients of 3 real files are not known.*--patient"):
        create(tmp_path, images=3)
    with pytest.raises(StudyError, match="finds no patient in real-000"):
        create(tmp_path, "more", images=3, patient=r"patient(\d+)")


@pytest.mark.filterwarnings("ignore:the patients")
def test_unusable_requests_leave_nothing_behind(volumes):
    files = sorted(path.name for path in volumes.iterdir())
    for error, message, options in (
        (StudyError, "images is 13, but there are only 12 synthetic", {"images": 13, "slices": 9}),
        (StudyError, "images is 0", {"images": 0}),
        (StudyError, "two folders", {"images": 3, "real": "synthetic"}),
        (DataError, "--real: .*nowhere: no such file or folder", {"images": 3, "real": "nowhere"}),
        (DataError, "--synthetic: .*nowhere: no such file or folder", {"images": 3, "synthetic": "nowhere"}),
    ):
        with pytest.raises(error, match=message):
            create(volumes, **options)
        if "no such" in message:
            assert not (volumes / "cache").exists()  # nothing was decoded
        shutil.rmtree(volumes / "cache", ignore_errors=True)
    assert sorted(path.name for path in volumes.iterdir()) == files
    create(volumes, images=3)
    with pytest.raises(StudyError, match="exists"):
        create(volumes, images=3)
    with pytest.raises(StudyError, match="prepared alike"):
        create_study(DataConfig(root="a", size=32), DataConfig(root="b", size=64), volumes / "more", CreateOptions())


def test_instructions_in_any_language(tmp_path):
    (tmp_path / "text.txt").write_text("您将看到 {total} 张图像。\n\n请逐一判断。\n", encoding="utf-8")
    made = make_study(tmp_path, n=2, title="阅片", instructions=str(tmp_path / "text.txt"))
    assert (made.title, made.instructions) == ("阅片", "您将看到 4 张图像。\n\n请逐一判断。")
    with pytest.raises(StudyError, match=r"missing\.txt cannot be read"):
        make_study(tmp_path / "other", n=2, instructions=str(tmp_path / "missing.txt"))


def test_a_study_that_cannot_be_opened_says_why(study, tmp_path):
    with pytest.raises(StudyError, match=r"does not exist.*vmddpm study create"):
        Study.open(tmp_path)
    copy = shutil.copytree(study.path, tmp_path / "copy")
    other = make_study(tmp_path / "other", seed=8)
    with pytest.raises(StudyError, match="key of another study"):
        load_key(Study.open(copy), other.path / "key.json")
    (copy / "key.json").unlink()
    with pytest.raises(StudyError, match="--key"):
        load_key(Study.open(copy))
    next((copy / "images").iterdir()).unlink()
    with pytest.raises(StudyError, match="is missing, one of 1"):
        Study.open(copy)
    (copy / "study.json").write_text("{}")
    with pytest.raises(StudyError, match="not written by this version"):
        Study.open(copy)
    (copy / "study.json").write_text("{")
    with pytest.raises(StudyError, match="cannot be read"):
        Study.open(copy)


def test_differences_that_need_no_anatomy_are_found(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 16, 16, 1)).astype(np.uint8)
    assert differences(images[:30], images[30:]) == []
    assert any("brightness" in found for found in differences(images[:30], images[30:] // 2))
    blurred = images[30:].astype(float)
    blurred = ((blurred + np.roll(blurred, 1, 1) + np.roll(blurred, 1, 2)) / 3).astype(np.uint8)
    assert any("fine detail" in found for found in differences(images[:30], blurred))


def test_a_comment_in_a_file_does_not_come_along(tmp_path):
    write_images(tmp_path / "real", 2, 1, pnginfo=png_text("of patient 7"))
    assert b"of patient 7" in (tmp_path / "real" / "real-000.png").read_bytes()
    write_images(tmp_path / "synthetic", 2, 0)
    with pytest.warns(UserWarning, match="not known"):
        create(tmp_path, images=2)
    assert not any(b"of patient 7" in path.read_bytes() for path in (tmp_path / "study" / "images").iterdir())
