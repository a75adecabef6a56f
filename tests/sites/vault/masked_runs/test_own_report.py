"""Own report: what a site signs of its own figures."""

import json

from fedpp.protocol.run_statements import MAX_FIGURES
from sites.vault.masked_runs.own_report import newest


def test_a_long_run_s_report_has_the_newest_states():
    """States are dropped by their numbers, 2 before 10, until the figures fit; the test figures are of a state, too."""
    size = MAX_FIGURES // 4
    rounds = {f"{number} validation": {"loss": "0" * size} for number in range(12)} | {"11 test": {"loss": "1"}}
    figures = newest(rounds)
    assert json.loads(figures).keys() == {"9 validation", "10 validation", "11 validation", "11 test"}
    assert len(figures) <= MAX_FIGURES
