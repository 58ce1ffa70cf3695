"""The whole report, from answers on disk, against the paper's printed numbers."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from study_helpers import an_answer, make_study, write_images

from vmddpm.cli import main
from vmddpm.study import Study, StudyError
from vmddpm.study.answers import AnswerLog, Submission
from vmddpm.study.folder import load_key
from vmddpm.study.report import report_on, report_on_counts

PRINTED = """
| {0} | Judge Real | Judge Syn. | Precision (= recall) | Recall (= precision) |
| --- | --- | --- | --- | --- |
| Data Real | 86 | 14 | 0.860 | 0.515 |
| Data Syn. | 81 | 17 | 0.173 | 0.548 |

| {1} | Judge Real | Judge Syn. | Precision (= recall) | Recall (= precision) |
| --- | --- | --- | --- | --- |
| Data Real | 44 | 28 | 0.611 | 0.431 |
| Data Syn. | 58 | 21 | 0.266 | 0.429 |

|  | {0} | {1} |
| --- | --- | --- |
| Fisher-exact's p-value | 0.56136 | 0.11982 |
"""
# (class, answer, confidence) -> number of images. The paper omits low confidence: 200 images minus the printed ones.
DOCTORS = {
    "doctor1": {("real", "real", "high"): 86, ("real", "synthetic", "medium"): 14,
                ("synthetic", "real", "medium"): 81, ("synthetic", "synthetic", "high"): 17,
                ("synthetic", "real", "low"): 2},
    "doctor2": {("real", "real", "medium"): 44, ("real", "synthetic", "high"): 28, ("real", "real", "low"): 28,
                ("synthetic", "real", "high"): 58, ("synthetic", "synthetic", "medium"): 21,
                ("synthetic", "synthetic", "low"): 21},
}  # fmt: skip


def answer(study, reader, judgements, images=None):
    """Store the judgements in the reader's order; the first image is answered twice."""
    key, log = load_key(study), AnswerLog(study, reader)
    left = {label: [(a, c) for (truth, a, c), n in judgements.items() if truth == label for _ in range(n)]
            for label in ("real", "synthetic")}  # fmt: skip
    for position, name in enumerate(study.order(reader)[:images]):
        given, confidence = left[key[name]].pop()
        if position == 0:
            log.add(Submission.parse(an_answer(0, 0, "synthetic" if given == "real" else "real", "high")))
        log.add(Submission.parse(an_answer(position, int(position == 0), given, confidence)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = make_study(tmp_path_factory.mktemp("report"), n=100, size=16)
    for reader, judgements in DOCTORS.items():
        answer(study, reader, judgements)
    return study


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_papers_tables_follow_from_200_answers_a_doctor(study, tmp_path):
    text = report_on(study, 0.1, tmp_path)
    assert PRINTED.format("doctor1", "doctor2") in text
    assert (tmp_path / "report.md").read_text() == text
    assert "| doctor1 | 200 of 200 | 1 | 1.5 |" in text
    assert "Not finished" not in text
    assert "| doctor1 | 198 | 0.520 [0.451, 0.589] | 0.140 [-0.283, 0.563] | 0.033 [-0.070, 0.138] | 0.10258 |" in text
    assert "| doctor2 | low | 28 / 0 | 0 / 21 | 1.000 [0.927, 1.000] | < 0.00001 |" in text
    assert "| doctor1 | low | 0 / 0 | 2 / 0 | 0.000 [0.000, 0.658] | 1.00000 |" in text

    rows = {(row["reader"], row["answers"]): row for row in read_csv(tmp_path / "statistics.csv")}
    assert len(rows) == 10
    first = rows["doctor1", "medium and high"]
    assert float(first["fisher_p"]) == pytest.approx(0.561363, abs=1e-6)
    assert float(first["recall_synthetic"]) == float(first["paper_precision_synthetic"]) == pytest.approx(17 / 98)
    assert float(first["precision_real"]) == float(first["paper_recall_real"]) == pytest.approx(86 / 167)
    assert rows["doctor1", "low"]["d_prime"] == ""

    (agreement,) = read_csv(tmp_path / "agreement.csv")
    assert (agreement["readers"], agreement["images"]) == ("doctor1, doctor2", "200")
    answers = read_csv(tmp_path / "answers.csv")
    assert len(answers) == 400
    key = load_key(study)
    assert all(row["class"] == key[row["image"]] for row in answers)
    assert sum(row["changes"] == "1" for row in answers) == 2

    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_printed_counts_are_enough(tmp_path):
    text = report_on_counts([86, 14, 81, 17, 44, 28, 58, 21], 0.1, tmp_path / "out")
    assert PRINTED.format("Doctor 1", "Doctor 2") in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.md", "report.pdf", "report.png", "statistics.csv"
    ]  # fmt: skip
    assert "| Doctor 1 | 0 | – | – | – | – |" in report_on_counts([0, 0, 0, 0], 0.1)
    for counts in ([], [1, 2, 3], [1, 2, 3, -4]):
        with pytest.raises(StudyError, match="four whole numbers"):
            report_on_counts(counts, 0.1)
    with pytest.raises(StudyError, match="margin is 10"):
        report_on_counts([1, 2, 3, 4], 10)


def test_unfinished_readers_and_absent_ones(study, tmp_path):
    copy = make_study(tmp_path, n=100, size=16)
    with pytest.raises(StudyError, match="no answers yet"):
        report_on(copy, 0.1, tmp_path / "out")
    AnswerLog(copy, "looked-in")
    answer(copy, "doctor1", DOCTORS["doctor1"], images=30)
    text = report_on(copy, 0.1, tmp_path / "out")
    assert "**Not finished: doctor1.**" in text
    assert "looked-in" not in text
    assert not (tmp_path / "out" / "agreement.csv").exists()
    for third in ("doctor2", "doctor3"):
        answer(copy, third, DOCTORS["doctor2"])
    assert "| doctor1, doctor2, doctor3 | 30 |" in report_on(copy, 0.1, tmp_path / "out")
    lines = copy.log("doctor1").read_text()
    copy.log("doctor1").write_text(lines.replace(copy.order("doctor1")[3], "0" * 16))
    with pytest.raises(StudyError, match="belongs to another study"):
        report_on(copy, 0.1, tmp_path / "out")


def test_the_key_may_be_elsewhere(study, tmp_path):
    copy = shutil.copytree(study.path, tmp_path / "study")
    (copy / "key.json").rename(tmp_path / "safe.json")
    out = ["study", "report", str(copy)]
    assert main(out) == 1
    assert main([*out, "--key", str(tmp_path / "safe.json")]) == 0
    assert (copy / "report" / "report.pdf").exists()


def test_the_commands_a_hospital_types(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "real", 4, 0)
    write_images(tmp_path / "samples", 4, 1)
    for path in (tmp_path / "samples").iterdir():
        path.rename(path.with_name(path.stem[-3:] + ".png"))
    shutil.copy(tmp_path / "samples" / "000.png", tmp_path / "samples" / "grid.png")
    (tmp_path / "samples" / "sampling.yaml").write_text("run: brats")
    create = ["study", "create", "--real", tmp_path / "real", "--synthetic", tmp_path / "samples", "--data.size", 32,
              "--data.min_foreground", 0, "--out", tmp_path / "study"]  # fmt: skip
    assert main([*map(str, create), "--images", "5"]) == 1
    assert "only 4 real images" in capsys.readouterr().err
    assert main([*map(str, create), "--images", "4", "--title", "Brains"]) == 0
    assert "4 real and 4 synthetic images" in capsys.readouterr().out
    assert "grid.png" not in (tmp_path / "study" / "key.json").read_text()
    assert main(["study", "readers", str(tmp_path / "study"), "anna", "ben"]) == 0
    assert [len(line.split()) for line in capsys.readouterr().out.splitlines()] == [2, 2]
    assert main(["study", "readers", str(tmp_path / "study"), "anna smith"]) == 1
    assert "is not a reader code" in capsys.readouterr().err
    assert main(["study", "report", str(tmp_path / "study")]) == 1
    assert "no answers yet" in capsys.readouterr().err
    assert main(["study", "report"]) == 1
    assert "--counts" in capsys.readouterr().err
    assert main(["study", "serve", str(tmp_path / "nowhere")]) == 1
    assert "vmddpm study create" in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, "-m", "vmddpm.cli", "study", "report", "--counts", "86", "14", "81", "17"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert "0.56136" in done.stdout
    assert done.stderr == ""


def test_a_copied_log_is_no_further_reader(study, tmp_path):
    """The report makes the same check as `serve`."""
    copy = Study.open(shutil.copytree(study.path, tmp_path / "study"))
    shutil.copy(copy.log("doctor1"), copy.log("doctor1 (copy)"))
    with pytest.raises(StudyError, match=r"answers of 'doctor1': it is a copy of another reader's log; move it away"):
        report_on(copy, 0.1, tmp_path / "out")
    copy.log("doctor1 (copy)").rename(copy.log("doctor3"))
    with pytest.raises(StudyError, match=r"doctor3\.jsonl has answers of 'doctor1'"):
        report_on(copy, 0.1, tmp_path / "out")
    renamed = copy.log("doctor1").read_text().replace('"reader": "doctor1"', '"reader": "doctor3"')
    copy.log("doctor3").write_text(renamed)
    with pytest.raises(StudyError, match=r"doctor3\.jsonl belongs to another study: its images come in another order"):
        report_on(copy, 0.1, tmp_path / "out")
    copy.log("doctor3").unlink()
    report_on(copy, 0.1, tmp_path / "out")


def test_answers_in_another_order_than_the_studys_are_refused(study, tmp_path):
    copy = Study.open(shutil.copytree(study.path, tmp_path / "study"))
    first, second = copy.order("doctor2")[:2]
    text = copy.log("doctor2").read_text()
    copy.log("doctor2").write_text(text.replace(first, "x").replace(second, first).replace("x", second))
    with pytest.raises(StudyError, match="images come in another order"):
        report_on(copy, 0.1, tmp_path / "out")


def test_a_missing_key_is_a_sentence(study, tmp_path, capsys):
    copy = Study.open(shutil.copytree(study.path, tmp_path / "study"))
    for content in (None, "{}", '{"schema": 1}', '{"schema": 1, "images": [{"name": "a"}]}', "[" * 100_000):
        (copy.path / "key.json").unlink(missing_ok=True)
        if content is not None:
            (copy.path / "key.json").write_text(content)
        assert main(["study", "report", str(copy.path)]) == 1
        error = capsys.readouterr().err
        assert "key" in error
        assert "Traceback" not in error
        assert len(error.splitlines()) == 1
