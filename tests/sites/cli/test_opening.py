"""Printed results of the commands."""

import pytest

from sites.cli.opening import show


def test_results_are_words_for_people(capsys: pytest.CaptureFixture[str]):
    """Counts by name, lists and undefined figures are printed without Python's punctuation."""
    values = {"sequences": {"train": 13, "validation": 3}, "auc": None, "shape": [4, 8], "classes": {}, "loss": 0.5}
    show(values, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "sequences  train 13, validation 3",
        "auc        undefined",
        "shape      4, 8",
        "classes    none",
        "loss       0.5000",
    ]
