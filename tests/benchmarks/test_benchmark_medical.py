"""Fingerprints planted in training images identify copied samples, independently of the report's distances."""

import pytest

from benchmarks.medical_evaluation import measure


def test_the_report_finds_the_copies_that_fingerprints_give_away():
    rows = {row.name: row for row in measure(("as it is", "mirrored", "unseen"))}
    for way in ("as it is", "mirrored"):
        copied = rows[f"copies, {way}"]
        assert copied.read > 0.95
        assert copied.reported == copied.named == 1
    alone = rows["unseen people with a fingerprint"]
    assert alone.read > 0.8
    assert alone.reported < 0.05  # a mark does not make a copy
    assert rows["unseen people"].read < 0.02
    assert rows["unseen people"].reported == pytest.approx(0, abs=0.01)
