"""Whole rounds of two sites by hand, with real messages and vaults."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import site_nodes
from conftest import TINY
from flwr.app import ConfigRecord
from run_specs import varied
from site_nodes import (
    NONCE,
    OTHER,
    Node,
    accept_replies,
    aggregate_from,
    aggregate_of,
    content_of,
    decrypted,
    initial_state,
    proof,
    reason,
    ring_of,
    run_spec_of,
    started,
    state_in,
    train_replies,
    train_reply,
    update_in,
)

from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.protocol import messages
from fedpp.protocol.participants import Participants


@cache
def trainer_of(domain: KeyDomain, hyperparameters: Hyperparameters, dtype: Any) -> EncryptedTrainer:
    """Return a trainer whose steps run eagerly, for comparison to the sites' traced ones."""
    trainer = EncryptedTrainer(TINY, domain.evaluation_key().algebra(), hyperparameters, dtype)
    trainer.model.run_eagerly = True
    return trainer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_round_is_the_average_of_the_sites_updates(both: list[Node], domain: KeyDomain, dtype: Any):
    """Both sites hold the same next state, to the bit: decrypted, it is the average of each site's own training."""
    run_spec = run_spec_of(domain, dtype=dtype)
    north, south = both
    first = north.reply_to(messages.InitialRequest(run_spec))
    before = state_in(first)
    content = messages.state_of(first)
    replies = accept_replies(both, run_spec, content, aggregate_from(both, run_spec, content))
    assert [messages.Verdict.read(reply).reason for reply in replies] == ["", ""]
    after, other = (state_in(reply) for reply in replies)
    assert after == other
    assert {messages.Verdict.read(reply).digest for reply in replies} == {after.digest}
    assert (after.round, after.dtype) == (1, dtype)

    expected = decrypted(domain, before)
    trainer = trainer_of(domain, run_spec.training.hyperparameters, dtype)
    for node in (north, south):
        trainer.load(before.rows)
        trainer.fit(node.dataset, epochs=1, seed=(0, 1))
        for name, rows in trainer.rows().items():
            start = encryption.decrypt(domain, before.rows[name])
            expected[name] = expected[name] + 6 / 12 * (encryption.decrypt(domain, rows) - start)
    resolution = max(2.0 ** -ring_of(run_spec).fraction, 1e-14)  # float64 itself is coarser than 64 bits
    found = decrypted(domain, after)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=20 * resolution)
    assert max(np.abs(found[name] - start).max() for name, start in decrypted(domain, before).items()) > 1e-4


def test_a_held_state_need_not_be_sent_again(both: list[Node], domain: KeyDomain):
    """A digest gets the same reply as the state itself: of a received state, and of a computed one."""
    run_spec = run_spec_of(domain)
    first = initial_state(domain, run_spec)
    content, base = first.to_bytes(), first.digest
    for number in (1, 2):
        total = aggregate_of(
            train_replies(both, run_spec, content if number == 1 else None, number, base=base if number == 2 else ""),
            run_spec,
        )
        named = accept_replies(both, run_spec, None, total, number, base=base)
        whole = accept_replies(both, run_spec, content, total, number)
        states = {state_in(reply).digest for reply in (*named, *whole)}
        assert [messages.Verdict.read(reply) for reply in named] == [messages.Verdict(*states, "")] * 2
        content, (base,) = messages.state_of(named[0]), states


def test_a_missing_state_is_requested(both: list[Node], domain: KeyDomain):
    """One that it never had, one that was damaged, and one of another round than the request's."""
    run_spec = run_spec_of(domain)
    state, north = initial_state(domain, run_spec), both[0]
    content = state.to_bytes()
    by_name = messages.TrainRequest(run_spec, 1, base=state.digest)
    assert reason(north.reply_to(by_name)) == messages.LOST_BASE
    train_reply(north, run_spec, state=content)
    assert messages.REFUSAL not in north.reply_to(by_name)
    (kept,) = north.folder.glob("runs/*/state-0")
    assert content in kept.read_bytes()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert reason(north.reply_to(by_name)) == messages.LOST_BASE
    train_reply(north, run_spec, state=content)
    late = messages.TrainRequest(run_spec, 2, base=state.digest)
    assert "is of round 0, expected that of round 1" in reason(north.reply_to(late))


@pytest.mark.parametrize("kind", [messages.TrainRequest, messages.EvaluateRequest])
def test_another_state_than_the_request_names_is_refused(
    both: list[Node], domain: KeyDomain, kind: type[messages.RoundRequest]
):
    """A site that computed none itself does not train from another state, nor keeps it as the model."""
    run_spec, north = run_spec_of(domain), both[0]
    named, came = (initial_state(domain, run_spec, seed=seed, number=3) for seed in (0, 1))
    request = kind(run_spec, 4, base=named.digest)
    reply = north.reply_to(request, came.to_bytes())
    assert reason(reply).startswith("the state of round 3 in the message is not the accepted one")
    assert not list(north.folder.glob("runs/*/state-*"))
    assert kept(north.folder) == {}
    assert messages.REFUSAL not in north.reply_to(request, named.to_bytes())


def test_an_aggregate_of_another_size_is_refused(both: list[Node], domain: KeyDomain):
    """Values of another number or width, examples beyond the run specification's, and a damaged list are named."""
    run_spec, state = started(domain)
    total, words = aggregate_from(both, run_spec, state)
    for given in (words[:-1], np.append(words, words[:1]), words.astype("<u4")):
        (reply,) = accept_replies(both[:1], run_spec, state, (total, given))
        assert reason(reply).startswith("its words are ")
    request = messages.AcceptRequest(run_spec, 1)
    content = content_of(domain, request, state, aggregate=(total, words))
    content[messages.SUM] = ConfigRecord({messages.SUM: total.to_json() + " "})
    assert reason(both[0].send("query.accept", content)).startswith("the facts of the aggregate are damaged")
    many = replace(total, parts=(total.parts[0], replace(total.parts[1], examples=7)))
    (reply,) = accept_replies(both[:1], run_spec, state, (many, words))
    assert reason(reply) == "this round allows 1 to 12 examples, got 13"


def test_a_state_is_sent_where_it_is_requested(both: list[Node], domain: KeyDomain):
    """Without `keep` the reply holds counts and the decision only; with it, also the state."""
    run_spec, state = started(domain)
    total = aggregate_from(both, run_spec, state)
    request = messages.AcceptRequest(run_spec, 1)
    reply = both[0].reply_to(request, state, aggregate=total)
    assert set(reply) == {messages.METRICS, messages.VERDICT}
    kept = both[0].reply_to(replace(request, keep=True), state, aggregate=total)
    assert set(kept) == {messages.METRICS, messages.VERDICT, messages.ARRAYS}
    assert state_in(kept).digest == messages.Verdict.read(reply).digest


def test_a_state_that_this_site_did_not_compute_is_refused(both: list[Node], domain: KeyDomain):
    """Of a round that it computed itself, a site takes that state only, in the next round, a retry and the test."""
    run_spec, state = started(domain)
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    after = state_in(reply)
    other = replace(initial_state(domain, run_spec, seed=1), round=1).to_bytes()
    train, test = messages.TrainRequest(run_spec, 2), messages.EvaluateRequest(run_spec, 2)
    requests = (train, replace(train, attempt=2), test)
    for request in requests:
        text = reason(both[0].reply_to(request, other))
        assert text.startswith("the state of round 1 is not the one that this site computed")
        assert messages.REFUSAL not in both[0].reply_to(request, after.to_bytes())
    later = train_replies(both, run_spec, messages.state_of(reply), 2)
    accept_replies(both, run_spec, messages.state_of(reply), aggregate_of(later, run_spec), 2)
    for request in requests:  # round 2 was computed; round 1 is still what it was
        text = reason(both[0].reply_to(request, other))
        assert text.startswith("the state of round 1 is not the one that this site computed")


def test_a_site_that_missed_the_accepted_attempt_resumes_from_it(both: list[Node], domain: KeyDomain):
    """It computed the first, the other site also the second attempt; a site with the second takes no first one."""
    run_spec = run_spec_of(domain)
    north, south = both
    state = initial_state(domain, run_spec).to_bytes()
    first, _ = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    (second,) = accept_replies([south], run_spec, state, aggregate_from(both, run_spec, state, attempt=2), attempt=2)
    adopted = state_in(second)
    assert (adopted.round, adopted.attempt) == (1, 2)
    assert adopted.digest != state_in(first).digest
    assert set(train_replies(both, run_spec, messages.state_of(second), 2)) == {"north", "south"}
    assert messages.REFUSAL not in north.reply_to(messages.TrainRequest(run_spec, 2), messages.state_of(first))
    text = reason(south.reply_to(messages.TrainRequest(run_spec, 2), messages.state_of(first)))
    assert text.startswith("the state of round 1 is of attempt 1, and this site has computed attempt 2")


def test_a_site_that_missed_rounds_resumes_from_the_received_state(both: list[Node], domain: KeyDomain):
    """It computed round 1, and neither 2 nor 3: its record of round 1 does not bind the state of round 3."""
    run_spec, state = started(domain)
    accept_replies(both[:1], run_spec, state, aggregate_from(both, run_spec, state))
    later = initial_state(domain, run_spec, seed=1, number=3).to_bytes()
    assert set(train_replies(both[:1], run_spec, later, 4)) == {"north"}


def test_a_site_that_joins_later_starts_from_the_received_state(
    both: list[Node], domain: KeyDomain, tmp_path: Path, sockets: str
):
    """One of three computes nothing of round 1; of round 2, in a run for three, all compute the same."""
    run_spec, state = started(domain)
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    east = site_nodes.node(tmp_path / "east", sockets, both[0].dataset, domain, "east")
    east.permit(secure_aggregation="optional")
    with east.beside_vault():
        three, run_spec = [*both, east], varied(run_spec, examples=18, sites=3)
        company = Participants(NONCE, tuple(proof(domain, name) for name in ("east", "north", "south")))
        before = messages.state_of(reply)
        trained = train_replies(three, run_spec, before, 2, participants=company)
        replies = accept_replies(three, run_spec, before, aggregate_of(trained, run_spec), 2, participants=company)
        states = [state_in(each) for each in replies]
    assert {state.digest for state in states} == {messages.Verdict.read(each).digest for each in replies}
    assert [(state.round, messages.Verdict.read(each).reason) for state, each in zip(states, replies, strict=True)] == [
        (2, "")
    ] * 3


def test_an_update_beyond_the_bounds_is_not_sent(both: list[Node], domain: KeyDomain):
    """Beyond the share of the model's norm, or with a value beyond the bound, the site abstains.

    The coordinator receives the kind of bound and no figure, which it could find by bounds of its choice.
    """
    long = train_reply(both[0], run_spec_of(domain, max_update_norm=1e-6))
    assert reason(long) == (
        "the update's Euclidean norm is more than 1e-06 times the global model's: lower the learning rate, train fewer "
        "epochs a round, or raise max-update-norm"
    )
    high = train_reply(both[0], run_spec_of(domain, max_update_value=2.0**-20))
    assert (
        reason(high) == "an update has a value beyond 9.53674e-07: lower the learning rate, or raise max-update-value"
    )


def test_a_new_model_beyond_the_norm_is_rejected(both: list[Node], domain: KeyDomain):
    """An aggregate that moves the model beyond the share of its norm is evaluated, its state reported, and rejected."""
    run_spec, state = started(domain, server_optimizer=ServerOptimizerConfig("fedavg", 1e6))
    for reply in accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state)):
        verdict = messages.Verdict.read(reply)
        assert verdict.reason.startswith("the update's Euclidean norm is more than 10 times the global model's: ")
        assert verdict.digest == state_in(reply).digest
        assert reply.metric_records[messages.METRICS]["examples"] == 2


def test_a_rise_of_the_loss_is_neither_sent_nor_accepted(both: list[Node], domain: KeyDomain):
    """From the second round on, in each attempt, a site's validation loss is compared to that of the round before."""
    tiny, small, large = (Hyperparameters(learning_rate=rate, batch_size=4) for rate in (1e-12, 1e-3, 1.0))
    run_spec = run_spec_of(
        domain,
        hyperparameters=tiny,
        server_optimizer=ServerOptimizerConfig("fedavg", 1e4),
        max_update_value=2.0**10,
        max_update_norm=1e9,
    )
    state = initial_state(domain, run_spec).to_bytes()
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    after = messages.state_of(reply)
    harmful = varied(run_spec, hyperparameters=large, max_loss_increase=1e-9)
    together = varied(
        run_spec, hyperparameters=small, max_loss_increase=0.5
    )  # each update passes, and the aggregate's step does not
    for attempt in (1, 2):
        for node in both:
            assert reason(node.reply_to(messages.TrainRequest(harmful, 2, attempt), after)) == (
                "the validation loss rose by more than 1e-09 nats: keep the model of the round before, and lower the "
                "learning rate"
            )
        total = aggregate_from(both, together, after, 2, attempt)
        for reply in accept_replies(both, together, after, total, 2, attempt):
            verdict = messages.Verdict.read(reply)
            assert verdict.reason.startswith("the validation loss rose by more than 0.5 nats: ")
            assert verdict.digest == state_in(reply).digest


def test_a_retry_trains_with_another_seed(both: list[Node], domain: KeyDomain):
    """One attempt always gives the same update, a second another; the first depends on seed and round only."""
    run_spec = run_spec_of(domain)
    before = initial_state(domain, run_spec)
    found = []
    for attempt in (1, 1, 2):
        replies = train_replies(both[:1], run_spec, before.to_bytes(), attempt=attempt)
        found.append(update_in(replies["north"], run_spec))
        both[0].forget()  # or it would send the first attempt's reply again, and train no second time
    first, again, second = found
    scale = 6 * 2.0 ** ring_of(run_spec).fraction
    moved = [np.abs((one - other).view(np.int64)).max() / scale for one, other in ((first, again), (first, second))]
    assert moved[0] < 1e-11
    assert moved[1] > 1e-6


def kept(work: Path) -> dict[str, bytes]:
    folder = work / "models"
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}


def test_the_final_model_is_kept_in_the_site_s_folder(both: list[Node], domain: KeyDomain):
    """The final test leaves the state as it was sent, under the run's number; a model that is only named is refused."""
    run_spec = run_spec_of(domain)
    final = initial_state(domain, run_spec, number=3)
    content = final.to_bytes()
    both[1].context.node_config["work"] = str(both[1].folder / "elsewhere")
    for node in both:
        reply = node.reply_to(messages.EvaluateRequest(run_spec, 4), content)
        assert set(reply) == {messages.METRICS}
        assert not list(node.folder.rglob("state-*"))  # the run is over
    named = both[0].reply_to(messages.EvaluateRequest(run_spec, 4, base=final.digest))
    assert reason(named).startswith("the request must hold the final model")
    assert kept(both[0].folder) == kept(both[1].folder / "elsewhere") == {"1.state": content}
    assert kept(both[1].folder) == {}


def test_a_kept_model_is_not_replaced(both: list[Node], domain: KeyDomain):
    """The same state is the kept one; another final model of the same run is refused."""
    run_spec = run_spec_of(domain)
    first, other = (initial_state(domain, run_spec, number=number) for number in (3, 4))
    content = first.to_bytes()
    for again in (content, first.to_bytes()):
        assert set(both[0].reply_to(messages.EvaluateRequest(run_spec, 4), again)) == {messages.METRICS}
    refused = both[0].reply_to(messages.EvaluateRequest(run_spec, 5), other.to_bytes())
    assert reason(refused) == "this site keeps another final model of this run: it is not replaced"
    assert kept(both[0].folder) == {"1.state": content}


def test_a_round_is_evaluated_on_the_validation_split_and_the_final_model_on_the_test_split(
    both: list[Node], domain: KeyDomain
):
    """Two sequences here, and three; neither a round's new model nor a final one that is refused is kept."""
    run_spec, state = started(domain)
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    assert messages.REFUSAL in both[0].reply_to(messages.EvaluateRequest(run_spec, 4), state)
    assert kept(both[0].folder) == {}
    final = both[0].reply_to(messages.EvaluateRequest(run_spec, 2), messages.state_of(reply))
    assert [of.metric_records[messages.METRICS]["examples"] for of in (reply, final)] == [2, 3]


def test_a_run_starts_from_an_initial_model(both: list[Node], domain: KeyDomain):
    """The first state has the model's rows, the run's optimizer, and round 0."""
    run_spec = run_spec_of(domain, server_optimizer=ServerOptimizerConfig("fedavgm", 0.5))
    earlier = initial_state(domain, run_spec_of(domain), seed=9, number=7)
    reply = both[0].reply_to(messages.InitialRequest(run_spec), earlier.to_bytes())
    state = state_in(reply)
    assert (state.round, state.rule) == (0, run_spec.server_optimizer)
    for name, rows in earlier.rows.items():
        np.testing.assert_array_equal(state.rows[name], rows)
    assert all(not moment.any() for moment in state.moments.values())


def test_a_ring_too_coarse_for_a_step_is_refused(both: list[Node], domain: KeyDomain):
    """Rounded to zero, a small site's update would leave another site's update alone in the aggregate."""
    coarse = run_spec_of(
        domain,
        examples=2**31,
        max_update_value=2.0**20,
        hyperparameters=Hyperparameters(learning_rate=1e-5, batch_size=4),
    )
    assert ring_of(coarse).fraction < 12
    text = reason(train_reply(both[0], coarse))
    assert text.startswith(
        "a step of rate 1e-05 of 6 examples is below 4 units of an aggregate of 2147483648: use float64"
    )
    assert messages.REFUSAL not in train_reply(
        both[0], varied(coarse, hyperparameters=Hyperparameters(learning_rate=0.1, batch_size=4))
    )


def test_an_initial_model_that_does_not_fit_is_refused(both: list[Node], domain: KeyDomain):
    """Of another network, dtype, domain or classes, or damaged."""
    run_spec = run_spec_of(domain)
    fitting = initial_state(domain, run_spec)
    text = "the initial model is of another domain, network or dtype than the run: use that model's settings"
    others = {
        text: [
            initial_state(domain, varied(run_spec, network=TINY.changed(lstm=3))),
            initial_state(domain, varied(run_spec, dtype="float32")),
            replace(fitting, domain=OTHER),
        ],
        "the initial model's classes are yes, no: ingest with the same": [replace(fitting, classes=("yes", "no"))],
    }

    def refused(content: bytes) -> str:
        request = messages.InitialRequest(run_spec)
        return reason(both[0].reply_to(request, content))

    for said, models in others.items():
        for other in models:
            assert refused(other.to_bytes()) == said
    assert refused(fitting.to_bytes()[:-1]).startswith("not a global state")
