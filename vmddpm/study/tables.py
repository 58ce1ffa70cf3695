"""The tables of a report, from rows of statistics: the paper's tables, then others."""

import math
from typing import Any

Table = tuple[list[str], list[list[str]]]  # headings, rows

NOTES = """## How to read this

- The paper's "Precision" is the share of each class that was judged correctly (usually called recall), its "Recall" the
  share of each judgement that was correct (usually called precision). Both names are given.
- A reader who cannot tell the classes apart calls both real equally often: the difference and d' are near 0, and the
  accuracy is that of guessing. Below 0, synthetic images are called real more often than real ones.
- Fisher's test asks whether the two classes were judged differently. A p above 0.05 does not show that they were judged
  alike: with few images it is above 0.05 whatever the reader sees. Use the equivalence test for that: a p below 0.05
  shows that both classes are called real equally often, to within the margin, which must be chosen beforehand.
- Intervals are 95 %. They hold for one reader and further images of these kinds, not for other readers."""


def paper_table(row: dict[str, Any]) -> Table:
    """Table III or IV, for one reader."""
    return [row["reader"], "Judge Real", "Judge Syn.", "Precision (= recall)", "Recall (= precision)"], [
        ["Data Real", str(row["real_as_real"]), str(row["real_as_synthetic"]),
         number(row["paper_precision_real"]), number(row["paper_recall_real"])],
        ["Data Syn.", str(row["synthetic_as_real"]), str(row["synthetic_as_synthetic"]),
         number(row["paper_precision_synthetic"]), number(row["paper_recall_synthetic"])],
    ]  # fmt: skip


def fisher_table(rows: list[dict[str, Any]]) -> Table:
    """Table V."""
    headings = ["", *(row["reader"] for row in rows)]
    return headings, [["Fisher-exact's p-value", *(p_value(row["fisher_p"]) for row in rows)]]


def detection_table(rows: list[dict[str, Any]]) -> Table:
    margin = rows[0]["margin"]
    headings = ["Reader", "n", "Accuracy", "d'", "P(judged real given real) - P(judged real given synthetic)",
                f"Equivalence within ±{margin:g}, p"]  # fmt: skip
    return headings, [
        [row["reader"], str(row["n"]), *(interval(row, name) for name in ("accuracy", "d_prime", "difference")),
         p_value(row["equivalence_p"])]
        for row in rows
    ]  # fmt: skip


def confidence_table(rows: list[dict[str, Any]]) -> Table:
    headings = ["Reader", "Confidence", "Real: judged real / syn.", "Syn.: judged real / syn.", "Accuracy", "Fisher p"]
    return headings, [
        [row["reader"], row["answers"], f"{row['real_as_real']} / {row['real_as_synthetic']}",
         f"{row['synthetic_as_real']} / {row['synthetic_as_synthetic']}", interval(row, "accuracy"),
         p_value(row["fisher_p"])]
        for row in rows
    ]  # fmt: skip


def agreement_table(rows: list[dict[str, Any]]) -> Table:
    return ["Readers", "Images", "All agree", "Measure", "Kappa"], [
        [row["readers"], str(row["images"]), number(row["agreement"]), row["measure"], interval(row, "kappa")]
        for row in rows
    ]


def number(value: float, digits: int = 3) -> str:
    """A number with fixed digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """The five digits of Table V."""
    return "< 0.00001" if value < 1e-5 else number(value, 5)


def interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return number(row[name]) + ("" if math.isnan(low) else f" [{number(low)}, {number(high)}]")


def markdown(table: Table) -> str:
    headings, rows = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *rows))
