"""A crashed coordinator is resumed at any moment: same rounds, same weights, nothing trained twice."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from coordinator_runs import Crashed, CrashingGrid, LocalGrid, Site, config, describe
from flwr.app import Message, RecordDict

from coordinator.server.app import federate
from coordinator.server.progress import Progress, ProgressFile
from coordinator.server.run_state import RunState
from fedpp.protocol import messages
from fedpp.protocol.messages import SUM, AcceptRequest, TrainRequest
from fedpp.protocol.run_record import FederationRecord


@dataclass
class Remembering(Site):
    """A site that repeats its reply to a repeated request, and whose vault unmasks one aggregate an attempt."""

    trained: dict[str, RecordDict] = field(default_factory=dict)
    lists: dict[tuple[int, int], str] = field(default_factory=dict)

    def answer(self, message: Message) -> RecordDict | None:
        content = message.content
        if message.metadata.message_type == "train":
            request = messages.TrainRequest.read(content)
            asked = f"{request.round} {request.attempt} {request.run_spec.digest}"
            if asked not in self.trained:
                reply = super().answer(message)
                assert reply is not None
                self.trained[asked] = reply
            return self.trained[asked]
        if messages.SUM in content:
            request, total = messages.AcceptRequest.read(content), messages.text_of(content, messages.SUM)
            assert self.lists.setdefault((request.round, request.attempt), total) == total
        return super().answer(message)


def sites() -> list[Remembering]:
    return [Remembering(describe(name), step=step) for name, step in (("a", 0.25), ("b", -0.125), ("c", 0.5))]


def facts(record: FederationRecord) -> list[object]:
    """Return the results that must not depend on the number of crashes."""
    return [replace(of, seconds=0.0) for of in record.rounds] + [record.test, record.sites, record.datasets]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_is_resumed_after_a_crash_at_any_call(every: int, tmp_path: Path) -> None:
    """No site trains a round twice, no vault sees a second list of contributors, and the weights are the same."""
    peace = CrashingGrid(sites(), 10**6)
    record = facts(federate(peace, config(tmp_path / "unbroken", sites=3)))
    model = (tmp_path / "unbroken" / "model.npz").read_bytes()
    for died in range(0, 10**6 - peace.left, every):
        those, out = sites(), tmp_path / str(died)
        with pytest.raises(Crashed):
            federate(CrashingGrid(those, died), config(out, sites=3))
        assert not RunState(out).is_held()
        assert facts(federate(LocalGrid(those), config(out, sites=3))) == record, died
        assert (out / "model.npz").read_bytes() == model
        assert [len(site.trained) for site in those] == [2, 2, 2]
        assert {path.name for path in out.iterdir()} == {"federation.json", "model.npz", "run"}
        assert not {path.name for path in (out / "run").iterdir()} & {"aggregate", "journal", "checkpoint"}


class Changed(CrashingGrid):
    """A grid that fails while a round's model is evaluated."""

    def __init__(self, sites: Iterable[Site], number: int = 2) -> None:
        super().__init__(sites, 10**6)
        self.number = number

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        requests = list(messages)
        ids = super().push_messages(requests)
        content = requests[0].content
        if SUM in content and AcceptRequest.read(content).round == self.number:
            raise Crashed
        return ids


def test_an_aggregate_that_was_sent_is_sent_again(tmp_path: Path) -> None:
    """It includes a site that does not reply after the crash: the vaults would not unmask another list."""
    those = sites()
    with pytest.raises(Crashed):
        federate(Changed(those), config(tmp_path, sites=3))
    reply = those[2].answer
    those[2].answer = lambda message: None if message.metadata.message_type == "train" else reply(message)
    record = federate(LocalGrid(those), config(tmp_path, sites=3))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2


class Answered(CrashingGrid):
    """A grid that fails after all requests to train in round 2."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__(sites, 10**6)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        requests = list(messages)
        ids = super().push_messages(requests)
        kind, content = requests[0].metadata.message_type, requests[0].content
        if kind == "train" and TrainRequest.read(content).round == 2:
            raise Crashed
        return ids


def test_a_site_that_joins_after_a_crash_repeats_no_training(tmp_path: Path) -> None:
    """The round in progress keeps its run specification; the new site takes part from the next one on."""
    those = sites()
    with pytest.raises(Crashed):
        federate(Answered(those), config(tmp_path, sites=3, rounds=3))
    new = Remembering(describe("d"))
    record = federate(LocalGrid([*those, new]), config(tmp_path, sites=3, rounds=3))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2 + [("a", "b", "c", "d")]
    assert [len(site.trained) for site in (*those, new)] == [3, 3, 3, 1]


def test_a_run_is_resumed_with_a_quorum_of_its_sites(tmp_path: Path) -> None:
    """A site that is gone is waited for like any other, and then the others evaluate the round."""
    those = sites()
    with pytest.raises(Crashed):
        federate(Changed(those), config(tmp_path, sites=3))
    record = federate(LocalGrid(those[:2]), config(tmp_path, sites=3, **{"wait-seconds": 0.3}))
    assert [set(of.validation) for of in record.rounds] == [{"a", "b", "c"}, {"a", "b"}]


def test_a_busy_site_is_waited_for_after_a_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It processes one request after another: it gets the time of a round to finish the earlier request."""
    those, slow = sites(), {"wait-seconds": 0.1, "round-seconds": 60.0}
    with pytest.raises(Crashed):
        federate(Answered(those), config(tmp_path, sites=3, **slow))
    record = federate(LocalGrid(those, delays={3: 40}), config(tmp_path, sites=3, **slow))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2
    assert [len(site.trained) for site in those] == [2, 2, 2]
    assert "waiting for 1 more, busy with an earlier request, 60 s at most" in capsys.readouterr().err


@pytest.mark.parametrize("last", ["finish", "update"])
def test_a_completed_run_is_not_repeated(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the record written, a resumed run only cleans up and reports completion."""
    those = sites()

    def dies(*_: object, **text: object) -> None:
        if last == "finish" or text.get("phase") == "completed":
            raise Crashed

    with monkeypatch.context() as patched, pytest.raises(Crashed):
        patched.setattr(RunState if last == "finish" else ProgressFile, last, dies)
        federate(CrashingGrid(those, 10**6), config(tmp_path, sites=3))
    model = (tmp_path / "model.npz").read_bytes()
    record = federate(LocalGrid([]), config(tmp_path, sites=3))
    assert record == FederationRecord.load(tmp_path / "federation.json")
    assert (tmp_path / "model.npz").read_bytes() == model
    assert Progress.load(RunState(tmp_path).progress).phase == "completed"
    assert {path.name for path in tmp_path.iterdir()} == {"federation.json", "model.npz", "run"}
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"aggregate", "journal", "checkpoint"}


def test_a_quarantine_lasts_after_a_crash(tmp_path: Path) -> None:
    """Also in the round that caused it."""
    those: list[Site] = [*sites()[:2], Site(describe("c"), {"train": RecordDict()})]
    with pytest.raises(Crashed):
        federate(Changed(those, 1), config(tmp_path, sites=3))
    record = federate(LocalGrid(those), config(tmp_path, sites=3))
    assert [of.sites for of in record.rounds] == [("a", "b")] * 2
    assert list(record.quarantined) == ["c"]
    assert those[2].asked.count("train") == 1


def test_the_reason_of_a_failed_serverapp_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, also for unexpected errors: the next ServerApp may fail likewise."""

    class Broken(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            raise RuntimeError("no\nconnection")

    with pytest.raises(RuntimeError):
        federate(Broken(sites()), config(tmp_path, sites=3))
    assert "the ServerApp failed: RuntimeError: no connection" in capsys.readouterr().err.splitlines()
    assert Progress.load(RunState(tmp_path).progress).phase == "waiting"


def test_a_resumed_run_knows_how_long_a_round_takes(tmp_path: Path) -> None:
    """The remaining time is known at once, and not after another round."""
    text: list[float] = []

    class Looking(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            text.append(Progress.load(RunState(tmp_path).progress).eta)
            return super().push_messages(messages)

    those = sites()
    with pytest.raises(Crashed):
        federate(Answered(those), config(tmp_path, sites=3))
    federate(Looking(those), config(tmp_path, sites=3))
    assert text[-3] > 0  # the request of round 2; then come evaluation and test
