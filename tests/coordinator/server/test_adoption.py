"""Acceptance of new models: majorities, rejected rounds, invalid states, and what a failed run keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coordinator_runs import LocalGrid, Site, config, describe, model_of, refusal
from flwr.app import ArrayRecord, Message, RecordDict

from coordinator.server.app import federate
from fedpp.errors import FederationError
from fedpp.protocol import messages

KEPT = {"model.npz", "run"}  # files of a failed run


class Sceptic(Site):
    """A site that rejects the models of the first attempts at a round."""

    def __init__(self, name: str, attempts: int, round_: int = 2) -> None:
        super().__init__(describe(name))
        self.attempts, self.round = attempts, round_

    def reason_of(self, request: messages.AcceptRequest) -> str:
        return "its validation loss rose" if (request.round == self.round and request.attempt <= self.attempts) else ""


def test_a_rejected_model_is_retried_from_the_last_accepted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The round is retried from the state before it, the record has the accepted attempt, and no step counts twice."""
    sites = [Sceptic("a", 1), Sceptic("b", 1), Site(describe("c"))]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert [r.attempt for r in record.rounds] == [1, 2]
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 2.0)
    err = capsys.readouterr().err
    assert "round 2: a rejects the new model: its validation loss rose" in err
    assert "round 2, attempt 1: no model accepted" in err


def test_one_site_of_three_cannot_reject_a_model(tmp_path: Path) -> None:
    """Fewer than half that reject are outvoted, and named."""
    record = federate(LocalGrid([Sceptic("a", 9), Site(describe("b")), Site(describe("c"))]), config(tmp_path, sites=3))
    assert [r.attempt for r in record.rounds] == [1, 1]
    assert record.rounds[1].excluded == {"a": "it rejected the model: its validation loss rose"}


def test_a_round_that_fails_too_often_ends_the_run(tmp_path: Path) -> None:
    """The last accepted model is kept, and one line says so."""
    with pytest.raises(FederationError, match=r"round 2 was tried 2 times, .*; the models of the last rounds are kept"):
        federate(LocalGrid([Sceptic("a", 9), Sceptic("b", 9)]), config(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == KEPT
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 1.0)


def test_a_test_without_replies_loses_no_round(tmp_path: Path) -> None:
    """The model of the last round is there, for `--model`, though the run failed after it."""
    sites = [Untested(describe(name)) for name in "ab"]
    with pytest.raises(FederationError, match="test counts: 0 sites replied .* missing are a, b: "):
        federate(LocalGrid(sites), config(tmp_path, wait_seconds=0.1))
    assert {path.name for path in tmp_path.iterdir()} == KEPT
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 2.0)


class Junk(Site):
    """A site that accepts a round's model, and sends another state."""

    round = 2

    def answer(self, message: Message) -> RecordDict | None:
        reply = super().answer(message)
        kept = reply is not None and messages.VERDICT in reply and messages.ARRAYS in reply
        if reply is not None and kept and messages.AcceptRequest.read(message.content).round == self.round:
            reply[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(b"no state")})
        return reply


def test_a_state_in_clear_is_checked(tmp_path: Path) -> None:
    """In clear the coordinator detects an invalid or another state, and requests it from the next site."""
    record = federate(LocalGrid([Junk(describe("a")), Site(describe("b"))]), config(tmp_path))
    assert [r.attempt for r in record.rounds] == [1, 1]
    assert "its state does not fit: not a global state" in record.rounds[1].excluded["a"]
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 2.0)


class Untested(Site):
    """A site that does not reply to the test request."""

    def answer(self, message: Message) -> RecordDict | None:
        return None if message.metadata.message_type == "evaluate" else super().answer(message)


def test_a_round_without_updates_is_no_round(tmp_path: Path) -> None:
    """If every site abstains, the run does not continue as if there had been a round."""
    abstaining = {"train": refusal(reason="the update's norm is 30 times the global model's")}
    sites = [Site(describe("a"), abstaining), Site(describe("b"), abstaining)]
    with pytest.raises(FederationError, match="round 1 was tried 2 times"):
        federate(LocalGrid(sites), config(tmp_path))
    assert [site.asked.count("train") for site in sites] == [2, 2]


class Forked(Site):
    """A site that computes another model than the others."""

    def answer(self, message: Message) -> RecordDict | None:
        reply = super().answer(message)
        if reply is not None and messages.VERDICT in reply:
            state = self.held[messages.Verdict.read(reply).digest]
            other = replace(state, rows={name: rows + 1.0 for name, rows in state.rows.items()})
            reply[messages.VERDICT] = messages.Verdict(other.digest, "").to_record()
            if messages.ARRAYS in reply:
                reply[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(other.to_bytes())})
        return reply


def test_the_state_comes_from_a_site_of_the_majority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first site is asked for the state, and the next one if its model differs from the majority's."""
    sites = [Forked(describe("a")), Site(describe("b")), Site(describe("c"))]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert [r.attempt for r in record.rounds] == [1, 1]
    assert "round 1: the sites computed 2 different models" in capsys.readouterr().err
    assert [site.scored.count(("validation", 1)) for site in sites] == [1, 2, 1]
    for of in record.rounds:  # of the majority's model only
        assert {site: counts.examples for site, counts in of.validation.items()} == {"b": 2, "c": 2}
    assert record.rounds[0].excluded == {"a": "it computed another model"}


def test_a_model_without_a_majority_is_not_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two sites with two models none is accepted, in any attempt."""
    with pytest.raises(FederationError, match="round 1 was tried 2 times"):
        federate(LocalGrid([Forked(describe("a")), Site(describe("b"))]), config(tmp_path))
    assert "round 1, attempt 2: no model accepted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Wavering(Site):
    """A site that rejects the new model when its state is requested."""

    def answer(self, message: Message) -> RecordDict | None:
        reply = super().answer(message)
        if reply is not None and messages.VERDICT in reply and messages.ARRAYS in reply:
            said = replace(messages.Verdict.read(reply), reason="its validation loss rose")
            reply[messages.VERDICT] = said.to_record()
        return reply


def test_a_site_that_contradicts_itself_with_its_state_is_skipped(tmp_path: Path) -> None:
    """With its state it must accept the same model as before; otherwise the next site is asked."""
    sites = [Forked(describe("a")), Wavering(describe("b")), Site(describe("c"))]
    federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert [site.scored.count(("validation", 1)) for site in sites] == [1, 2, 2]
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 2.0)
