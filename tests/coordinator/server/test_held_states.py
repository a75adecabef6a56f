"""States are sent once: a request about a state that the site holds has its digest alone."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from coordinator_runs import LocalGrid, Site, config, describe, model_of, refusal
from flwr.app import ArrayRecord, Message, RecordDict

from coordinator.server.app import federate
from coordinator.server.run_state import RunState
from fedpp.aggregation.global_state import GlobalState
from fedpp.protocol import messages


@dataclass
class Forgetting(Site):
    """A site that loses its states before requests of these kinds and rounds."""

    loses: tuple[tuple[str, int], ...] = ()

    def answer(self, message: Message) -> RecordDict | None:
        if asked(message.content, message.metadata.message_type) in self.loses:
            self.held.clear()
        return super().answer(message)


@dataclass
class Lying(Site):
    """A site that always replies that it does not hold the state."""

    states: list[int] = field(default_factory=list)

    def answer(self, message: Message) -> RecordDict | None:
        kind, round_ = asked(message.content, message.metadata.message_type)
        if kind == "train" and round_ == 2:
            self.states.append(len(message.content.array_records[messages.ARRAYS]))
            return refusal(reason=messages.LOST_BASE)
        return super().answer(message)


def asked(content: RecordDict, kind: str) -> tuple[str, int]:
    requests = {
        "train": messages.TrainRequest,
        "query.accept": messages.AcceptRequest,
        "evaluate": messages.EvaluateRequest,
    }
    return (kind, requests[kind].read(content).round) if kind in requests else (kind, 0)


def sent(site: Site) -> list[tuple[str, int]]:
    """Return the requests that carried a state."""
    kinds = zip(site.asked, site.seen, strict=True)
    return [
        asked(c, kind) for kind, c in kinds if messages.STATE in c.array_records.get(messages.ARRAYS, ArrayRecord())
    ]


def test_a_site_is_sent_a_state_that_it_does_not_hold(tmp_path: Path) -> None:
    """The state of round 0, and at the end the model; it computed all others itself."""
    sites = [Site(describe(name)) for name in "ab"]
    record = federate(LocalGrid(sites), config(tmp_path, rounds=3))
    assert [sent(site) for site in sites] == [[("train", 1), ("evaluate", 4)]] * 2
    assert [of.sites for of in record.rounds] == [("a", "b")] * 3
    final = sites[0].seen[-1]
    model = GlobalState.from_bytes(messages.state_of(final))
    assert messages.EvaluateRequest.read(final).base == model.digest


@pytest.mark.parametrize("lost", [("train", 2), ("train", 3), ("query.accept", 1), ("query.accept", 2)])
def test_a_site_that_lost_a_state_is_sent_it(tmp_path: Path, lost: tuple[str, int]) -> None:
    """Again, in the same round: the site is not excluded, and the model is unchanged."""
    sites = [Site(describe("a")), Forgetting(describe("b"), loses=(lost,))]
    record = federate(LocalGrid(sites), config(tmp_path, rounds=3))
    assert sent(sites[0]) == [("train", 1), ("evaluate", 4)]
    assert sent(sites[1]) == sorted([("train", 1), lost, ("evaluate", 4)], key=lambda of: (of[1], of[0] != "train"))
    assert [of.sites for of in record.rounds] == [("a", "b")] * 3
    assert not [of.excluded for of in record.rounds if of.excluded]
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 3.0)  # a step of 1 in each round
    assert RunState(tmp_path).log.read_text().count("b has lost the last model, and is sent it again") == 1


class Another(Site):
    """A site that computes another model than the others in the first round."""

    def answer(self, message: Message) -> RecordDict | None:
        reply = super().answer(message)
        if reply is not None and asked(message.content, message.metadata.message_type) == ("query.accept", 1):
            reply[messages.VERDICT] = messages.Verdict("e" * 64, "").to_record()
        return reply


def test_a_site_that_computed_another_model_is_sent_the_accepted_one(tmp_path: Path) -> None:
    """It does not train from a state that the others do not have."""
    sites = [*(Site(describe(name)) for name in "ab"), Another(describe("c"))]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert sent(sites[0]) == [("train", 1), ("evaluate", 3)]
    assert sent(sites[2]) == [("train", 1), ("train", 2), ("evaluate", 3)]
    assert record.rounds[1].sites == ("a", "b", "c")
    assert record.rounds[1].excluded == {}


def test_a_site_that_takes_no_state_is_excluded(tmp_path: Path) -> None:
    """It is sent the state once, and not repeatedly."""
    liar = Lying(describe("b"))
    record = federate(LocalGrid([Site(describe("a")), liar]), config(tmp_path, rounds=3))
    assert liar.states == [0, 1]
    assert record.rounds[1].sites == ("a",)
    assert messages.LOST_BASE in record.rounds[1].excluded["b"]
    assert record.rounds[2].sites == ("a", "b")


def test_a_site_that_missed_a_model_is_sent_it(tmp_path: Path) -> None:
    """A site that did not evaluate a new model is sent it, to train from."""
    missing = Site(describe("b"), {"query.accept": refusal(reason="busy")})
    sites = [Site(describe("a")), missing]
    federate(LocalGrid(sites), config(tmp_path, rounds=2))
    assert sent(sites[0]) == [("train", 1), ("evaluate", 3)]
    assert sent(sites[1]) == [("train", 1), ("train", 2), ("evaluate", 3)]
