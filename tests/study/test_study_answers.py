"""The answer log loses and duplicates nothing: lost acknowledgements, two windows, truncated lines, full disks."""

import json
import os
import threading
from errno import ENOSPC

import pytest
from study_helpers import an_answer, make_study, rows_of

from vmddpm.study import StudyError
from vmddpm.study.answers import AnswerLog, StaleAnswer, Submission, final_answers, read_log


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("made"), n=3)


@pytest.fixture
def study(made):
    yield made
    for path in (made.path / "answers").iterdir():
        path.unlink()


def sent(*arguments, **options):
    return Submission.parse(an_answer(*arguments, **options))


def test_a_row_has_everything_and_is_on_the_disk_when_add_returns(study, monkeypatch):
    synced = []
    fsync = os.fsync

    def spy(descriptor):
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path, os.path.getsize(path)))

    monkeypatch.setattr(os, "fsync", spy)
    log = AnswerLog(study, "anna")
    log.add(sent(0, answer="synthetic", confidence="low"))
    path = study.log("anna")
    assert synced == [(str(path), path.stat().st_size), (str(path.parent), path.parent.stat().st_size)]
    row = rows_of(study, "anna")[0]
    assert row["image"] == study.order("anna")[0]
    assert (row["reader"], row["answer"], row["confidence"], row["seconds"]) == ("anna", "synthetic", "low", 1.5)
    assert row["page"] == "0123456789ab"
    assert row["time"].endswith("+00:00")
    log.add(sent(1))
    assert synced[2:] == [(str(path), path.stat().st_size)]
    AnswerLog(study, "anna").add(sent(2))  # a writer may have been killed before the file's name was on the disk
    assert [name for name, _ in synced[3:]] == [str(path), str(path.parent)]


def test_going_back_adds_a_revision_and_the_last_one_counts(study):
    log = AnswerLog(study, "anna")
    log.add(sent(0))
    log.add(sent(1))
    assert log.state()["previous"] == {"revision": 1, "answer": "real", "confidence": "high"}
    log.add(sent(1, 1, "synthetic", "medium"))
    log.add(sent(1, 2, "synthetic", "low"))
    assert AnswerLog(study, "anna").state() == log.state() == {
        "reader": "anna", "total": 6, "next": 2, "previous": {"revision": 3, "answer": "synthetic", "confidence": "low"}
    }  # fmt: skip
    assert [(row["position"], row["revision"], row["confidence"]) for row in final_answers(study, "anna")] == [
        (0, 0, "high"), (1, 2, "low")
    ]  # fmt: skip
    for stale in (sent(0, 1), sent(1, 0, submission="a" * 8), sent(1, 2, submission="b" * 8), sent(3), sent(7)):
        with pytest.raises(StaleAnswer):
            log.add(stale)
    assert len(rows_of(study, "anna")) == 4


def test_an_answer_that_is_sent_again_is_stored_once(study):
    log = AnswerLog(study, "anna")
    for _ in range(3):
        log.add(sent(0))
    AnswerLog(study, "anna").add(sent(0))
    assert len(rows_of(study, "anna")) == 1


def test_two_windows_and_many_threads_store_one_answer(study):
    log = AnswerLog(study, "anna")
    outcomes = []

    def answer(window):
        for position in range(6):
            try:
                log.add(sent(position, submission=f"{position:08x}{window:08x}"))
                outcomes.append(position)
            except StaleAnswer:
                pass

    threads = [threading.Thread(target=answer, args=(window,)) for window in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = rows_of(study, "anna")
    assert [row["position"] for row in rows] == sorted(outcomes) == list(range(6))


def test_a_line_cut_at_any_byte_was_never_acknowledged(study):
    log = AnswerLog(study, "anna")
    log.add(sent(0))
    log.add(sent(1))
    whole = study.log("anna").read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        study.log("anna").write_bytes(whole[:length])
        assert [row["position"] for row in final_answers(study, "anna")] == [0]  # a report changes nothing
        assert study.log("anna").stat().st_size == length
        again = AnswerLog(study, "anna")
        assert study.log("anna").stat().st_size == first
        again.add(sent(1))
        assert [row["position"] for row in rows_of(study, "anna")] == [0, 1]


def test_a_full_disk_leaves_the_log_as_it_was(study, monkeypatch):
    log = AnswerLog(study, "anna")
    log.add(sent(0))
    before = study.log("anna").read_bytes()

    def full(descriptor):
        raise OSError(ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.add(sent(1))
    assert study.log("anna").read_bytes() == before
    assert log.state()["next"] == 1
    log.add(sent(1))
    assert len(rows_of(study, "anna")) == 2


def test_damage_is_reported_with_its_line(study):
    log = AnswerLog(study, "anna")
    for position in range(3):
        log.add(sent(position))
    lines = study.log("anna").read_text().splitlines(keepends=True)
    for damaged in (["{}\n"], ["no JSON\n"], [lines[0]], [], [lines[1].replace("high", "sure")]):
        study.log("anna").write_text("".join([lines[0], *damaged, lines[2]]))
        with pytest.raises(StudyError, match=r"anna\.jsonl, line [23], is damaged"):
            read_log(study.log("anna"))
    study.log("anna").write_text("".join(lines).replace(study.order("anna")[1], study.order("anna")[4]))
    with pytest.raises(StudyError, match="another study"):
        AnswerLog(study, "anna")


@pytest.mark.parametrize(
    ("field", "values"),
    [("position", [-1, 1.0, True, "1", None]), ("revision", [-1, None]), ("answer", ["Real", None, [], 1]),
     ("confidence", ["sure", 3]), ("seconds", [-1, float("nan"), float("inf"), "1", None, 1e9, True]),
     ("page", ["", "x" * 12, 7]), ("submission", ["", "../../x", "a" * 65, None])],
)  # fmt: skip
def test_unusable_fields_are_named(field, values):
    for value in values:
        with pytest.raises(ValueError, match=field):
            Submission.parse({**an_answer(0), field: value})
    for content in ({}, [], None, {**an_answer(0), "more": 1}):
        with pytest.raises(ValueError, match="exactly the fields"):
            Submission.parse(content)


def test_a_page_may_load_one_image_ahead_and_no_more(study):
    log = AnswerLog(study, "anna")
    order = study.order("anna")
    assert [log.image(position) for position in range(4)] == [order[0], order[1], None, None]
    log.add(sent(0))
    assert log.image(2) == order[2]
    assert log.image(6) is None
    assert json.loads(study.log("anna").read_text())["image"] == order[0]
