"""How the commands print their results."""

from argparse import Namespace

import pytest

from sites.cli.opening import show


def test_results_are_words_for_people(capsys: pytest.CaptureFixture[str]):
    """Counts by name, lists and what is undefined are told without Python's signs."""
    values = {"sequences": {"train": 13, "validation": 3}, "auc": None, "shape": [4, 8], "classes": {}, "loss": 0.5}
    show(Namespace(json=False), values)
    assert capsys.readouterr().out.splitlines() == [
        "sequences  train 13, validation 3",
        "auc        undefined",
        "shape      4, 8",
        "classes    none",
        "loss       0.5000",
    ]
