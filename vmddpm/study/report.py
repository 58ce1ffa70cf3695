"""Makes the report on the answers: Markdown, a page to print, and CSV files."""

import csv
import io
import math
from pathlib import Path
from statistics import median
from typing import Any

from vmddpm.files import write_text
from vmddpm.study import statistics as st
from vmddpm.study import tables
from vmddpm.study.answers import CONFIDENCES, final_answers
from vmddpm.study.folder import CLASSES, Study, StudyError, load_key

# The first set is that of the paper's tables: "For the judgment results of medium to high Confidence Level".
SETS = {"medium and high": CONFIDENCES[1:], "all": CONFIDENCES, **{level: (level,) for level in reversed(CONFIDENCES)}}


def report_on(study: Study, margin: float, out: Path, key: Path | None = None) -> str:
    """Write report.md, report.png, report.pdf, statistics.csv, agreement.csv and answers.csv, and return the Markdown.

    Args:
        margin: margin of the equivalence test.
        key: path of the key, if it is not in the study's folder.

    Raises:
        StudyError: if there are no answers, a log is damaged, or the key is missing or another study's.
    """
    classes = load_key(study, key)
    answers = {reader: final_answers(study, reader) for reader in study.readers_with_answers()}
    answers = {reader: rows for reader, rows in answers.items() if rows}
    if not answers:
        raise StudyError(f"{study.path} has no answers yet")
    rows = [
        summary(reader, name, _count([row for row in given if row["confidence"] in levels], classes), margin)
        for name, levels in SETS.items()
        for reader, given in answers.items()
    ]
    judged = {reader: {row["image"]: row["answer"] for row in given} for reader, given in answers.items()}
    agreement = st.agreements(judged)
    paper = rows[: len(answers)]
    parts = [
        f"# {study.title}: reader study", _readers(answers, len(study.images)),
        "## Medium and high confidence, as in the paper's Tables III to V", *_paper(paper),
        "## What medium and high confidence show", tables.markdown(tables.detection_table(paper)),
        "## By confidence", tables.markdown(tables.confidence_table(rows)),
    ]  # fmt: skip
    if agreement:
        parts += ["## Agreement between readers, all answers", tables.markdown(tables.agreement_table(agreement))]
    text = _write(out, parts, f"{study.title}, answers of medium and high confidence", paper)
    write_text(out / "statistics.csv", _csv(rows))
    if agreement:
        write_text(out / "agreement.csv", _csv(agreement))
    write_text(out / "answers.csv", _csv([
        {"reader": reader, "image": row["image"], "class": classes[row["image"]], "answer": row["answer"],
         "confidence": row["confidence"], "seconds": row["seconds"], "position": row["position"] + 1,
         "changes": row["revision"], "time": row["time"], "page": row["page"]}
        for reader, given in answers.items() for row in given
    ]))  # fmt: skip
    return text


def report_on_counts(counts: list[int], margin: float, out: Path | None = None) -> str:
    """Report on printed counts, four for each reader in the order of `Counts`; writes nothing without `out`."""
    if len(counts) % 4 or not counts or min(counts) < 0:
        raise StudyError(f"counts are {counts}; they must be four whole numbers per reader, none below 0")
    rows = [
        summary(f"Doctor {first // 4 + 1}", "as printed", st.Counts(*counts[first : first + 4]), margin)
        for first in range(0, len(counts), 4)
    ]
    parts = ["# Printed counts", *_paper(rows), "## What they show", tables.markdown(tables.detection_table(rows))]
    if out is None:
        return _text(parts)
    write_text(out / "statistics.csv", _csv(rows))
    return _write(out, parts, "Printed counts", rows)


def summary(reader: str, answers: str, c: st.Counts, margin: float) -> dict[str, Any]:
    """All statistics of a set of one reader's answers, which are the columns of statistics.csv.

    Raises:
        StudyError: if the margin is not above 0 and below 1.
    """
    if not 0 < margin < 1:
        raise StudyError(f"margin is {margin}; it must be a difference of shares above 0 and below 1, such as 0.1")
    row: dict[str, Any] = {"reader": reader, "answers": answers, **c._asdict(), "n": sum(c)}
    pairs = {"paper_precision": st.paper_precision(c), "paper_recall": st.paper_recall(c),
             "recall": st.paper_precision(c), "precision": st.paper_recall(c)}  # fmt: skip
    row |= {f"{name}_{label}": value for name, pair in pairs.items() for label, value in zip(CLASSES, pair)}
    row["fisher_p"] = st.fisher(c)
    for name, estimate in (("accuracy", st.accuracy(c)), ("d_prime", st.d_prime(c)), ("difference", st.difference(c))):
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row | {"margin": margin, "equivalence_p": st.equivalence(c, margin)}


def _count(rows: list[dict[str, Any]], classes: dict[str, str]) -> st.Counts:
    given = [(classes[row["image"]], row["answer"]) for row in rows]
    return st.Counts(*(given.count((truth, answer)) for truth in CLASSES for answer in CLASSES))


def _paper(rows: list[dict[str, Any]]) -> list[str]:
    return [*(tables.markdown(tables.paper_table(row)) for row in rows), tables.markdown(tables.fisher_table(rows))]


def _readers(answers: dict[str, list[dict[str, Any]]], total: int) -> str:
    headings = ["Reader", "Answered", "Answered again", "Median seconds an image"]
    text = tables.markdown((headings, [
        [reader, f"{len(rows)} of {total}", str(sum(row["revision"] > 0 for row in rows)),
         tables.number(median(row["seconds"] for row in rows), 1)]
        for reader, rows in answers.items()
    ]))  # fmt: skip
    unfinished = [reader for reader, rows in answers.items() if len(rows) < total]
    note = f"\n\n**Not finished: {', '.join(unfinished)}.** Part of the answers is not the study's result."
    return text + (note if unfinished else "")


def _text(parts: list[str]) -> str:
    return "\n\n".join([*parts, tables.NOTES]) + "\n"


def _write(out: Path, parts: list[str], caption: str, rows: list[dict[str, Any]]) -> str:
    from vmddpm.study.figure import save_figure

    text = _text(parts)
    write_text(out / "report.md", text)
    save_figure(caption, rows, [out / "report.png", out / "report.pdf"])
    return text


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return text.getvalue()
