"""A coordinator that dies at any moment goes on where it was: same rounds, same weights, nothing trained twice."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from coordinator_runs import Died, LocalGrid, MortalGrid, Site, config, describe
from flwr.app import Message, RecordDict
from masked_sites import opened

from coordinator.server.app import federate
from coordinator.server.progress import Progress, ProgressFile
from coordinator.server.run_state import RunState
from fedpp.protocol import messages
from fedpp.protocol.messages import SUM, AcceptRequest, TrainRequest
from fedpp.protocol.run_record import FederationRecord


@dataclass
class Remembering(Site):
    """A site that answers a question once more as it did, and whose vault unmasks one list a round and attempt."""

    trained: dict[str, RecordDict] = field(default_factory=dict)
    lists: dict[tuple[int, int], str] = field(default_factory=dict)

    def answer(self, question: Message) -> RecordDict | None:
        content = question.content
        if question.metadata.message_type == "train":
            request = messages.TrainRequest.of(content)
            asked = f"{request.round} {request.attempt} {request.run_spec.digest}"
            if asked not in self.trained:
                answer = super().answer(question)
                assert answer is not None
                self.trained[asked] = answer
            return self.trained[asked]
        if messages.SUM in content:
            request, total = messages.AcceptRequest.of(content), messages.text_of(content, messages.SUM)
            assert self.lists.setdefault((request.round, request.attempt), total) == total
        return super().answer(question)


def sites() -> list[Remembering]:
    return [Remembering(describe(name), step=step) for name, step in (("a", 0.25), ("b", -0.125), ("c", 0.5))]


def facts(record: FederationRecord) -> list[object]:
    """Return what must not depend on how often the coordinator died."""
    return [replace(of, seconds=0.0) for of in record.rounds] + [record.test, record.sites, record.datasets]


def test_a_coordinator_that_dies_at_any_call_goes_on_to_the_same_model(tmp_path: Path) -> None:
    """Whatever it did last, no site trains a round twice, no vault sees a second list, and the weights are the same."""
    peace = MortalGrid(sites(), 10**6)
    record = facts(federate(peace, config(tmp_path / "unbroken", sites=3)))
    digest = opened((tmp_path / "unbroken" / "model.sealed").read_bytes()).digest
    for died in range(10**6 - peace.left):
        those, out = sites(), tmp_path / str(died)
        with pytest.raises(Died):
            federate(MortalGrid(those, died), config(out, sites=3))
        assert not RunState(out).is_held()
        assert facts(federate(LocalGrid(those), config(out, sites=3))) == record, died
        assert opened((out / "model.sealed").read_bytes()).digest == digest
        assert [len(site.trained) for site in those] == [2, 2, 2]
        assert {path.name for path in out.iterdir()} == {"federation.json", "model.sealed", "run"}
        assert not {path.name for path in (out / "run").iterdir()} & {"aggregate", "journal", "checkpoint"}


class Changed(MortalGrid):
    """A grid that dies while the sum of a round is judged."""

    def __init__(self, sites: Iterable[Site], number: int = 2) -> None:
        super().__init__(sites, 10**6)
        self.number = number

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        questions = list(messages)
        ids = super().push_messages(questions)
        content = questions[0].content
        if SUM in content and AcceptRequest.of(content).round == self.number:
            raise Died
        return ids


def test_a_sum_that_was_sent_is_sent_again_whoever_is_there(tmp_path: Path) -> None:
    """A site that does not answer after the death is in the sum all the same: another list no vault would unmask."""
    those = sites()
    with pytest.raises(Died):
        federate(Changed(those), config(tmp_path, sites=3))
    answer = those[2].answer
    those[2].answer = lambda question: None if question.metadata.message_type == "train" else answer(question)
    record = federate(LocalGrid(those), config(tmp_path, sites=3))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2


class Answered(MortalGrid):
    """A grid that dies when all have been asked to train in round 2."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__(sites, 10**6)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        questions = list(messages)
        ids = super().push_messages(questions)
        kind, content = questions[0].metadata.message_type, questions[0].content
        if kind == "train" and TrainRequest.of(content).round == 2:
            raise Died
        return ids


def test_a_site_that_joins_after_the_death_costs_nobody_a_training(tmp_path: Path) -> None:
    """The round that was begun keeps its plan; who is new takes part from the next one on."""
    those = sites()
    with pytest.raises(Died):
        federate(Answered(those), config(tmp_path, sites=3, rounds=3))
    new = Remembering(describe("d"))
    record = federate(LocalGrid([*those, new]), config(tmp_path, sites=3, rounds=3))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2 + [("a", "b", "c", "d")]
    assert [len(site.trained) for site in (*those, new)] == [3, 3, 3, 1]


def test_a_run_goes_on_with_a_quorum_of_its_sites(tmp_path: Path) -> None:
    """A site that is gone for good is waited for as long as any site, and then the others judge the round."""
    those = sites()
    with pytest.raises(Died):
        federate(Changed(those), config(tmp_path, sites=3))
    record = federate(LocalGrid(those[:2]), config(tmp_path, sites=3, **{"wait-seconds": 0.3}))
    assert [set(of.validation) for of in record.rounds] == [{"a", "b", "c"}, {"a", "b"}]


def test_a_site_at_work_is_waited_for_after_the_death(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers one question after another: it has the time of a round to finish what the dead one had asked."""
    those, slow = sites(), {"wait-seconds": 0.1, "round-seconds": 60.0}
    with pytest.raises(Died):
        federate(Answered(those), config(tmp_path, sites=3, **slow))
    record = federate(LocalGrid(those, answers={3: 40}), config(tmp_path, sites=3, **slow))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2
    assert [len(site.trained) for site in those] == [2, 2, 2]
    assert "waiting for 1 more, busy with an earlier request, 60 s at most" in capsys.readouterr().err


@pytest.mark.parametrize("last", ["finish", "update"])
def test_a_run_that_had_all_but_ended_is_not_run_again(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is there: who goes on in its place clears up, says so and asks nobody."""
    those = sites()

    def dies(*_: object, **told: object) -> None:
        if last == "finish" or told.get("phase") == "completed":
            raise Died

    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(RunState if last == "finish" else ProgressFile, last, dies)
        federate(MortalGrid(those, 10**6), config(tmp_path, sites=3))
    model = (tmp_path / "model.sealed").read_bytes()
    record = federate(LocalGrid([]), config(tmp_path, sites=3))
    assert record == FederationRecord.load(tmp_path / "federation.json")
    assert (tmp_path / "model.sealed").read_bytes() == model
    assert Progress.load(RunState(tmp_path).progress).phase == "completed"
    assert {path.name for path in tmp_path.iterdir()} == {"federation.json", "model.sealed", "run"}
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"aggregate", "journal", "checkpoint"}


def test_who_was_quarantined_stays_so_after_a_death(tmp_path: Path) -> None:
    """Also in the round that found it out."""
    those: list[Site] = [*sites()[:2], Site(describe("c"), {"train": RecordDict()})]
    with pytest.raises(Died):
        federate(Changed(those, 1), config(tmp_path, sites=3))
    record = federate(LocalGrid(those), config(tmp_path, sites=3))
    assert [of.sites for of in record.rounds] == [("a", "b")] * 2
    assert list(record.quarantined) == ["c"]
    assert those[2].asked.count("train") == 1


def test_why_a_serverapp_failed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, also of what nobody foresaw: another one takes its place, and may fail likewise."""

    class Broken(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            raise RuntimeError("no\nconnection")

    with pytest.raises(RuntimeError):
        federate(Broken(sites()), config(tmp_path, sites=3))
    assert "the ServerApp failed: RuntimeError: no connection" in capsys.readouterr().err.splitlines()
    assert Progress.load(RunState(tmp_path).progress).phase == "waiting"


def test_who_goes_on_knows_how_long_a_round_takes(tmp_path: Path) -> None:
    """So the time that is left is told at once, and not after another round."""
    told: list[float] = []

    class Looking(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            told.append(Progress.load(RunState(tmp_path).progress).eta)
            return super().push_messages(messages)

    those = sites()
    with pytest.raises(Died):
        federate(Answered(those), config(tmp_path, sites=3))
    federate(Looking(those), config(tmp_path, sites=3))
    assert told[-3] > 0  # round 2 is asked for; what follows is to judge, and to test
