"""Fixtures for runs in the test process, which Flower takes for one of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity
from masked_cohort import Node
from run_hospitals import Hospital, opened

from coordinator.server import admission, exchange, gathering
from coordinator.server.masked import abandonment, cohort_requests
from fedpp.config.contract_limits import RunLimits


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Make Flower believe that messages are made inside a run, as in its processes."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchange, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchange, "RESTART_POLL_SECONDS", 0.02)
    monkeypatch.setattr(gathering, "OFFLINE_SECONDS", 0.02)
    monkeypatch.setattr(cohort_requests, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(cohort_requests, "REPEAT_SECONDS", 0.02)
    monkeypatch.setattr(abandonment, "ABANDON_SECONDS", 0.2)


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Return three hospitals."""
    with opened(tmp_path) as made:
        yield made


@pytest.fixture
def five(tmp_path: Path) -> Iterator[list[Node]]:
    """Return the nodes of five hospitals, whose policies allow two changes of so small a cohort."""
    with opened(tmp_path, 5) as made:
        for of in made:
            of.limits = RunLimits(max_changes=2)
        yield [Node(of) for of in made]
