"""Which new model the sites adopt, what becomes of a round that they do not, and what a run that fails keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coordinator_runs import LocalGrid, Site, config, describe, refusal
from flwr.app import ArrayRecord, Message, RecordDict
from masked_sites import opened

from coordinator.server.app import federate
from fedpp.errors import FederationError, MaskError, ModelError
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol import messages

KEPT = {True: {"model.sealed", "model-before.sealed", "run"}, False: {"model.npz", "run"}}  # of a run that failed


class Sceptic(Site):
    """A site that adopts no model of the first attempts, of a round."""

    def __init__(self, name: str, attempts: int, round_: int = 2) -> None:
        super().__init__(describe(name))
        self.attempts, self.round = attempts, round_

    def reason_of(self, request: messages.AcceptRequest) -> str:
        return "its validation loss rose" if (request.round == self.round and request.attempt <= self.attempts) else ""


def test_a_model_that_the_sites_do_not_adopt_is_tried_again_from_the_last_good_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The round is repeated from the state before it, the record says which attempt counted, and no step is twice."""
    sites = [Sceptic("a", 1), Sceptic("b", 1), Site(describe("c"))]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert [r.attempt for r in record.rounds] == [1, 2]
    np.testing.assert_array_equal(opened((tmp_path / "model.sealed").read_bytes()).rows["dense/bias"], 2.0)
    err = capsys.readouterr().err
    assert "round 2: a rejects the new model: its validation loss rose" in err
    assert "round 2, attempt 1: no model accepted" in err


def test_one_site_of_three_does_not_keep_the_others_from_going_on(tmp_path: Path) -> None:
    """Fewer than half that refuse are outvoted, and named."""
    record = federate(LocalGrid([Sceptic("a", 9), Site(describe("b")), Site(describe("c"))]), config(tmp_path, sites=3))
    assert [r.attempt for r in record.rounds] == [1, 1]
    assert record.rounds[1].excluded == {"a": "it rejected the model: its validation loss rose"}


def test_a_round_that_fails_too_often_ends_the_run_loudly(tmp_path: Path) -> None:
    """The last good model alone is kept, and the one line says so."""
    with pytest.raises(FederationError, match=r"round 2 was tried 2 times, .*; the models of the last rounds are kept"):
        federate(LocalGrid([Sceptic("a", 9), Sceptic("b", 9)]), config(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"model.sealed", "run"}
    assert opened((tmp_path / "model.sealed").read_bytes()).round == 1


@pytest.mark.parametrize("masking", [True, False])
def test_a_test_without_answers_costs_no_round(masking: bool, tmp_path: Path) -> None:
    """The model of the last round is there, for `--model`, though the run failed after it."""
    sites = [Untested(describe(name)) for name in "ab"]
    with pytest.raises(FederationError, match="test counts: 0 sites replied .* missing are a, b: "):
        federate(LocalGrid(sites), config(tmp_path, secure_aggregation=masking))
    assert {path.name for path in tmp_path.iterdir()} == KEPT[masking]
    path = tmp_path / ("model.sealed" if masking else "model.npz")
    model = opened(path.read_bytes()) if masking else EncryptedModel.load(path)
    np.testing.assert_array_equal(model.rows["dense/bias"], 2.0)


class Silent(Site):
    """A site that does not answer what it cannot open."""

    def answer(self, question: Message) -> RecordDict | None:
        try:
            return super().answer(question)
        except (FederationError, MaskError, ModelError):
            return None


class Junk(Silent):
    """A site that adopts a model, and sends something else, of a round."""

    round = 2

    def answer(self, question: Message) -> RecordDict | None:
        answer = super().answer(question)
        kept = answer is not None and messages.VERDICT in answer and messages.ARRAYS in answer
        if answer is not None and kept and messages.AcceptRequest.of(question.content).round == self.round:
            answer[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(b"no state")})
        return answer


class Forgetful(Silent):
    """A site that loses all states that it holds before it is asked to train."""

    def answer(self, question: Message) -> RecordDict | None:
        if question.metadata.message_type == "train":
            self.held.clear()
        return super().answer(question)


class ForgetfulJunk(Junk, Forgetful):
    """A site that does both."""


def test_a_state_that_is_none_costs_nobody_who_holds_the_true_one(tmp_path: Path) -> None:
    """Sealed, nobody but a site sees it; a round later a true one takes its place."""
    record = federate(LocalGrid([Junk(describe("a")), Silent(describe("b"))]), config(tmp_path, rounds=3))
    assert [of.sites for of in record.rounds] == [("a", "b")] * 3
    np.testing.assert_array_equal(opened((tmp_path / "model.sealed").read_bytes()).rows["dense/bias"], 3.0)


def test_a_state_that_is_none_does_not_cost_the_one_before(tmp_path: Path) -> None:
    """Where no site holds the true one, the run ends in the next round, and both files are there."""
    with pytest.raises(FederationError, match="round 3: update: 0 sites replied"):
        federate(LocalGrid([ForgetfulJunk(describe("a")), Forgetful(describe("b"))]), config(tmp_path, rounds=3))
    assert (tmp_path / "model.sealed").read_bytes() == b"no state"
    assert opened((tmp_path / "model-before.sealed").read_bytes()).round == 1


def test_a_state_in_clear_is_looked_at(tmp_path: Path) -> None:
    """In clear the coordinator sees that it is none, or another than was adopted, and asks the next site."""
    record = federate(LocalGrid([Junk(describe("a")), Site(describe("b"))]), config(tmp_path, secure_aggregation=False))
    assert [r.attempt for r in record.rounds] == [1, 1]
    assert "its state does not fit: not a global state" in record.rounds[1].excluded["a"]
    np.testing.assert_array_equal(EncryptedModel.load(tmp_path / "model.npz").rows["dense/bias"], 2.0)


class Untested(Site):
    """A site that is silent when it is asked to test."""

    def answer(self, question: Message) -> RecordDict | None:
        return None if question.metadata.message_type == "evaluate" else super().answer(question)


def test_no_update_at_all_is_no_round(tmp_path: Path) -> None:
    """Where every site abstains, the run never goes on as if there had been a round."""
    abstaining = {"train": refusal(reason="the update's norm is 30 times the global model's")}
    sites = [Site(describe("a"), abstaining), Site(describe("b"), abstaining)]
    with pytest.raises(FederationError, match="round 1 was tried 2 times"):
        federate(LocalGrid(sites), config(tmp_path))
    assert [site.asked.count("train") for site in sites] == [2, 2]


class Forked(Site):
    """A site that computes another model than the others."""

    def answer(self, question: Message) -> RecordDict | None:
        answer = super().answer(question)
        if answer is not None and messages.VERDICT in answer:
            answer[messages.VERDICT] = messages.Verdict("0" * 64, "").to_record()
        return answer


def test_a_state_comes_from_a_site_that_computed_what_most_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first site is asked for the state, and if its model is not the others', the next one is."""
    sites = [Forked(describe("a")), Site(describe("b")), Site(describe("c"))]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert [r.attempt for r in record.rounds] == [1, 1]
    assert "round 1: the sites computed 2 different models" in capsys.readouterr().err
    assert [site.scored.count(("validation", 1)) for site in sites] == [1, 2, 1]
    for of in record.rounds:  # of the model that went on alone
        assert {site: counts.examples for site, counts in of.validation.items()} == {"b": 2, "c": 2}
    assert record.rounds[0].excluded == {"a": "it computed another model"}


def test_a_model_that_no_majority_computed_is_not_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two sites with two models none goes on, in any attempt."""
    with pytest.raises(FederationError, match="round 1 was tried 2 times"):
        federate(LocalGrid([Forked(describe("a")), Site(describe("b"))]), config(tmp_path))
    assert "round 1, attempt 2: no model accepted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Wavering(Site):
    """A site that says something else of a round's model when it is asked for its state, and sends one that is none."""

    def __init__(self, name: str, verdict: Callable[[messages.Verdict], messages.Verdict]) -> None:
        super().__init__(describe(name))
        self.verdict = verdict

    def answer(self, question: Message) -> RecordDict | None:
        answer = super().answer(question)
        if answer is not None and messages.VERDICT in answer and messages.ARRAYS in answer:
            answer[messages.VERDICT] = self.verdict(messages.Verdict.of(answer)).to_record()
            answer[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(b"no state")})
        return answer


@pytest.mark.parametrize(
    "verdict",
    [lambda said: replace(said, digest="1" * 64), lambda said: replace(said, reason="its validation loss rose")],
    ids=["another model", "a reason"],
)
def test_a_site_that_says_something_else_with_its_state_is_passed_over(
    verdict: Callable[[messages.Verdict], messages.Verdict], tmp_path: Path
) -> None:
    """Asked again for its state it must adopt the same model as before; if it does not, the next site is asked."""
    sites = [Forked(describe("a")), Wavering("b", verdict), Site(describe("c"))]
    federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert [site.scored.count(("validation", 1)) for site in sites] == [1, 2, 2]
    np.testing.assert_array_equal(opened((tmp_path / "model.sealed").read_bytes()).rows["dense/bias"], 2.0)
