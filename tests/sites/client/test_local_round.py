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
    BOTH,
    CLEAR,
    CLOSED,
    MASKED,
    MOSTLY_MASKED,
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
    sealed,
    sent,
    started,
    state_in,
    train_replies,
    train_reply,
    update_in,
)
from vaults import policy_of

from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.protocol import messages
from fedpp.protocol.participants import Participants
from fedpp.vault_api.vault_client import VaultClient


@cache
def trainer_of(domain: KeyDomain, hyperparameters: Hyperparameters, dtype: Any) -> EncryptedTrainer:
    """Return a trainer whose steps run eagerly, for comparison to the sites' traced ones."""
    trainer = EncryptedTrainer(TINY, domain.evaluation_key().algebra(), hyperparameters, dtype)
    trainer.model.run_eagerly = True
    return trainer


@pytest.mark.parametrize(
    ("dtype", "masked"),
    [
        ("float32", CLEAR),
        ("float64", MASKED),
        pytest.param("float32", MASKED, marks=pytest.mark.slow),
        pytest.param("float64", CLEAR, marks=pytest.mark.slow),
    ],
)
def test_a_round_is_the_average_of_the_sites_updates(both: list[Node], domain: KeyDomain, dtype: Any, masked: bool):
    """Both sites hold the same next state, to the bit: decrypted, it is the average of each site's own training."""
    run_spec = run_spec_of(domain, masked=masked, dtype=dtype)
    north, south = both
    first = north.reply_to(messages.InitialRequest(run_spec, ""))
    before = state_in(first, domain, masked=masked)
    content = messages.state_of(first)
    replies = accept_replies(both, run_spec, content, aggregate_from(both, run_spec, content))
    assert [messages.Verdict.read(reply).reason for reply in replies] == ["", ""]
    after, other = (state_in(reply, domain, masked=masked) for reply in replies)
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


@MOSTLY_MASKED
def test_a_held_state_need_not_be_sent_again(both: list[Node], domain: KeyDomain, masked: bool):
    """A digest gets the same reply as the state itself: of a received state, and of a computed one."""
    run_spec = run_spec_of(domain, masked=masked)
    first = initial_state(domain, run_spec)
    content, base = sent(domain, run_spec, first), first.digest
    for number in (1, 2):
        total = aggregate_of(
            train_replies(both, run_spec, content if number == 1 else None, number, base=base if number == 2 else ""),
            run_spec,
        )
        named = accept_replies(both, run_spec, None, total, number, base=base)
        whole = accept_replies(both, run_spec, content, total, number)
        states = {state_in(reply, domain, masked=masked).digest for reply in (*named, *whole)}
        assert [messages.Verdict.read(reply) for reply in named] == [messages.Verdict(*states, "")] * 2
        content, (base,) = messages.state_of(named[0]), states


@BOTH
def test_a_missing_state_is_requested(both: list[Node], domain: KeyDomain, masked: bool):
    """One that it never had, one that was damaged, and one of another round than the request's."""
    run_spec = run_spec_of(domain, masked=masked)
    state, north = initial_state(domain, run_spec), both[0]
    content = sent(domain, run_spec, state)
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
    text = "sealed state about" if masked else "is of round 0, expected that of round 1"
    assert text in reason(north.reply_to(late))


@BOTH
@pytest.mark.parametrize("kind", [messages.TrainRequest, messages.EvaluateRequest])
def test_another_state_than_the_request_names_is_refused(
    both: list[Node], domain: KeyDomain, masked: bool, kind: type[messages.RoundRequest]
):
    """A site that computed none itself does not train from another state that was sealed, nor keeps it as the model."""
    run_spec, north = run_spec_of(domain, masked=masked), both[0]
    named, came = (initial_state(domain, run_spec, seed=seed, number=3) for seed in (0, 1))
    request = kind(run_spec, 4, base=named.digest)
    reply = north.reply_to(request, sent(domain, run_spec, came))
    assert reason(reply).startswith("the state of round 3 in the message is not the accepted one")
    assert not list(north.folder.glob("runs/*/state-*"))
    assert kept(north.folder) == {}
    assert messages.REFUSAL not in north.reply_to(request, sent(domain, run_spec, named))


def test_masked_replies_hold_nothing_of_the_rows(both: list[Node], domain: KeyDomain):
    """No value of a row or update is in a sealed state or a masked update; in clear all are."""
    shown = {}
    for masked in (MASKED, CLEAR):
        run_spec = run_spec_of(domain, masked=masked)
        first = both[0].reply_to(messages.InitialRequest(run_spec, ""))
        state = messages.state_of(first)
        replies = train_replies(both, run_spec, state)
        after = messages.state_of(accept_replies(both[:1], run_spec, state, aggregate_of(replies, run_spec))[0])
        shown[masked] = (state, after, update_in(replies["north"], run_spec).tobytes())
        for each in both:
            each.forget()
    *states, words = shown[CLEAR]
    secrets = [np.concatenate([r.reshape(-1) for r in GlobalState.from_bytes(state).rows.values()]) for state in states]
    secrets.append(np.frombuffer(words, "<u8"))
    for hidden, clear, values in zip(shown[MASKED], shown[CLEAR], secrets, strict=True):
        pieces = {value.tobytes() for value in values} - {bytes(8)}
        assert len(pieces) > values.size // 2
        assert values.tobytes() in clear
        assert not [start for start in range(len(hidden) - 7) if hidden[start : start + 8] in pieces]


def test_nothing_of_the_rows_is_on_the_disk_of_a_masked_run(both: list[Node], domain: KeyDomain):
    """What a site keeps of a masked run is sealed or masked; in clear all values are there."""
    for masked in (MASKED, CLEAR):
        run_spec = run_spec_of(domain, masked=masked)
        state = initial_state(domain, run_spec)
        content = sent(domain, run_spec, state)
        (reply,) = accept_replies(both[:1], run_spec, content, aggregate_from(both, run_spec, content))
        after = state_in(reply, domain, masked=masked)
        disk = b"".join(path.read_bytes() for path in both[0].folder.glob("runs/*/*"))
        for of in (state, after):
            values = np.concatenate([rows.reshape(-1) for rows in of.rows.values()])
            found = sum(value.tobytes() in disk for value in values[:200] if value)
            assert found == (0 if masked else np.count_nonzero(values[:200]))
        for each in both:
            each.forget()


def test_the_mask_changes_nothing_of_the_model(both: list[Node], domain: KeyDomain):
    """The same updates, under masks and in clear, give the same next state, to the bit."""
    masked, clear = (run_spec_of(domain, masked=value) for value in (MASKED, CLEAR))
    state = initial_state(domain, clear)
    replies = train_replies(both, clear, state.to_bytes())
    of = Round(NONCE, 1, 1, state.digest, masked.digest, 2 * TINY.parameters(), ring_of(clear))
    parts, words = [], np.zeros(of.length, of.ring.dtype)
    for node in both:
        name = node.site.identity.name
        with VaultClient(str(node.context.node_config["vault"])) as vault:
            hidden = vault.mask(of.to_json(), 6, update_in(replies[name], clear))
        parts.append((Contribution(name, hidden.nonce, 6, hidden.min_cohort), hidden.tag))
        words = words + hidden.values
    for each in both:
        each.forget()
    ours = accept_replies(both, masked, sealed(domain, state), (Aggregate.of(parts), words))
    for each in both:
        each.forget()
    theirs = accept_replies(both, clear, state.to_bytes(), aggregate_of(replies, clear))
    for reply, other in zip(ours, theirs, strict=True):
        assert state_in(reply, domain, masked=True) == state_in(other, domain, masked=False) != state


def test_an_aggregate_that_does_not_fit_is_refused(
    both: list[Node], domain: KeyDomain, caplog: pytest.LogCaptureFixture
):
    """Of another attempt, altered, of other examples, of one site only or of a stranger: it gives no model."""
    run_spec, state = started(domain)
    total, words = aggregate_from(both, run_spec, state)
    second = aggregate_from(both, run_spec, state, attempt=2)
    stranger = replace(total.parts[1], site="mallory")
    tampered = [
        (second, "does not fit its tag"),
        ((total, words ^ (np.arange(words.size) == 9)), "does not fit its tag"),
        ((replace(total, tag=total.tag + 1), words), "does not fit its tag"),
        ((replace(total, parts=(total.parts[0], replace(total.parts[1], examples=5))), words), "does not fit its tag"),
        ((replace(total, parts=total.parts[:1]), words), "is of 1 sites, and the policy requires 2"),
        ((replace(total, parts=(total.parts[0], stranger)), words), "names mallory, which did not prove"),
        ((replace(total, parts=(*total.parts, total.parts[0])), words), "one update from each site"),
    ]
    for given, text in tampered:
        caplog.clear()
        for reply in accept_replies(both, run_spec, state, given):
            assert reason(reply) == CLOSED
        logged = [entry.getMessage() for entry in caplog.records if entry.name == "fedpp.site"]
        assert [text in line for line in logged] == [True, True]
    assert [messages.VERDICT in reply for reply in accept_replies(both, run_spec, state, (total, words))] == [
        True,
        True,
    ]


@BOTH
def test_an_aggregate_of_another_size_is_refused(both: list[Node], domain: KeyDomain, masked: bool):
    """Values of another number or width, examples beyond the run specification's, and a damaged list are named."""
    run_spec, state = started(domain, masked=masked)
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
    assert reason(reply) == (CLOSED if masked else "this round allows 1 to 12 examples, got 13")


def test_a_state_is_sent_where_it_is_requested(both: list[Node], domain: KeyDomain):
    """Without `keep` the reply holds counts and the decision only; with it, also the state, sealed about its round."""
    run_spec, state = started(domain)
    total = aggregate_from(both, run_spec, state)
    request = messages.AcceptRequest(run_spec, 1)
    reply = both[0].reply_to(request, state, aggregate=total)
    assert set(reply) == {messages.METRICS, messages.VERDICT}
    kept = both[0].reply_to(replace(request, keep=True), state, aggregate=total)
    assert set(kept) == {messages.METRICS, messages.VERDICT, messages.ARRAYS}
    assert state_in(kept, domain, masked=True).digest == messages.Verdict.read(reply).digest


@MOSTLY_MASKED
def test_a_state_that_this_site_did_not_compute_is_refused(both: list[Node], domain: KeyDomain, masked: bool):
    """Of a round that it computed itself, a site takes that state only, in the next round, a retry and the test."""
    run_spec, state = started(domain, masked=masked)
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    after = state_in(reply, domain, masked=masked)
    other = sent(domain, run_spec, replace(initial_state(domain, run_spec, seed=1), round=1))
    train, test = messages.TrainRequest(run_spec, 2), messages.EvaluateRequest(run_spec, 2)
    requests = (train, replace(train, attempt=2), test)
    for request in requests:
        text = reason(both[0].reply_to(request, other))
        assert text.startswith("the state of round 1 is not the one that this site computed")
        assert messages.REFUSAL not in both[0].reply_to(request, sent(domain, run_spec, after))
    later = train_replies(both, run_spec, messages.state_of(reply), 2)
    accept_replies(both, run_spec, messages.state_of(reply), aggregate_of(later, run_spec), 2)
    for request in requests:  # round 2 was computed; round 1 is still what it was
        text = reason(both[0].reply_to(request, other))
        assert text.startswith("the state of round 1 is not the one that this site computed")


@MOSTLY_MASKED
def test_a_site_that_missed_the_accepted_attempt_resumes_from_it(both: list[Node], domain: KeyDomain, masked: bool):
    """It computed the first, the other site also the second attempt; a site with the second takes no first one."""
    run_spec = run_spec_of(domain, masked=masked)
    north, south = both
    state = sent(domain, run_spec, initial_state(domain, run_spec))
    first, _ = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    (second,) = accept_replies([south], run_spec, state, aggregate_from(both, run_spec, state, attempt=2), attempt=2)
    adopted = state_in(second, domain, masked=masked)
    assert (adopted.round, adopted.attempt) == (1, 2)
    assert adopted.digest != state_in(first, domain, masked=masked).digest
    assert set(train_replies(both, run_spec, messages.state_of(second), 2)) == {"north", "south"}
    assert messages.REFUSAL not in north.reply_to(messages.TrainRequest(run_spec, 2), messages.state_of(first))
    text = reason(south.reply_to(messages.TrainRequest(run_spec, 2), messages.state_of(first)))
    assert text.startswith("the state of round 1 is of attempt 1, and this site has computed attempt 2")


@MOSTLY_MASKED
def test_a_site_that_missed_rounds_resumes_from_the_received_state(both: list[Node], domain: KeyDomain, masked: bool):
    """It computed round 1, and neither 2 nor 3: its record of round 1 does not bind the state of round 3."""
    run_spec, state = started(domain, masked=masked)
    accept_replies(both[:1], run_spec, state, aggregate_from(both, run_spec, state))
    later = sent(domain, run_spec, initial_state(domain, run_spec, seed=1, number=3))
    assert set(train_replies(both[:1], run_spec, later, 4)) == {"north"}


@MOSTLY_MASKED
def test_a_site_that_joins_later_starts_from_the_received_state(
    both: list[Node], domain: KeyDomain, tmp_path: Path, sockets: str, masked: bool
):
    """One of three computes nothing of round 1; of round 2, in a run for three, all compute the same."""
    run_spec, state = started(domain, masked=masked)
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    east = site_nodes.node(tmp_path / "east", sockets, both[0].dataset, domain, "east")
    east.permit(secure_aggregation="optional")
    with east.beside_vault():
        three, run_spec = [*both, east], varied(run_spec, examples=18, sites=3)
        company = Participants(NONCE, tuple(proof(domain, name) for name in ("east", "north", "south")))
        before = messages.state_of(reply)
        trained = train_replies(three, run_spec, before, 2, participants=company)
        replies = accept_replies(three, run_spec, before, aggregate_of(trained, run_spec), 2, participants=company)
        states = [state_in(each, domain, masked=masked) for each in replies]
    assert {state.digest for state in states} == {messages.Verdict.read(each).digest for each in replies}
    assert [(state.round, messages.Verdict.read(each).reason) for state, each in zip(states, replies, strict=True)] == [
        (2, "")
    ] * 3


@MOSTLY_MASKED
def test_an_update_beyond_the_bounds_is_not_sent(both: list[Node], domain: KeyDomain, masked: bool):
    """Beyond the share of the model's norm, or with a value beyond the bound, the site abstains.

    The coordinator receives the kind of bound and no figure, which it could find by bounds of its choice.
    """
    long = train_reply(both[0], run_spec_of(domain, masked=masked, max_update_norm=1e-6))
    assert reason(long) == (
        "the update's Euclidean norm is more than 1e-06 times the global model's: lower the learning rate, train fewer "
        "epochs a round, or raise max-update-norm"
    )
    high = train_reply(both[0], run_spec_of(domain, masked=masked, max_update_value=2.0**-20))
    assert (
        reason(high) == "an update has a value beyond 9.53674e-07: lower the learning rate, or raise max-update-value"
    )


@MOSTLY_MASKED
def test_a_new_model_beyond_the_norm_is_rejected(both: list[Node], domain: KeyDomain, masked: bool):
    """An aggregate that moves the model beyond the share of its norm is evaluated, its state reported, and rejected."""
    run_spec, state = started(domain, masked=masked, server_optimizer=ServerOptimizerConfig("fedavg", 1e6))
    for reply in accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state)):
        verdict = messages.Verdict.read(reply)
        assert verdict.reason.startswith("the update's Euclidean norm is more than 10 times the global model's: ")
        assert verdict.digest == state_in(reply, domain, masked=masked).digest
        assert reply.metric_records[messages.METRICS]["examples"] == 2


@MOSTLY_MASKED
def test_a_rise_of_the_loss_is_neither_sent_nor_accepted(both: list[Node], domain: KeyDomain, masked: bool):
    """From the second round on, in each attempt, a site's validation loss is compared to that of the round before."""
    tiny, small, large = (Hyperparameters(learning_rate=rate, batch_size=4) for rate in (1e-12, 1e-3, 1.0))
    run_spec = run_spec_of(
        domain,
        masked=masked,
        hyperparameters=tiny,
        server_optimizer=ServerOptimizerConfig("fedavg", 1e4),
        max_update_value=2.0**10,
        max_update_norm=1e9,
    )
    state = sent(domain, run_spec, initial_state(domain, run_spec))
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
            assert verdict.digest == state_in(reply, domain, masked=masked).digest


def test_a_retry_trains_with_another_seed(both: list[Node], domain: KeyDomain):
    """One attempt always gives the same update, a second another; the first depends on seed and round only."""
    run_spec = run_spec_of(domain, masked=False)
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


@BOTH
def test_the_final_model_is_kept_in_the_site_s_folder(both: list[Node], domain: KeyDomain, masked: bool):
    """The final test leaves the state as it was sent, under the run's number; a model that is only named is refused."""
    run_spec = run_spec_of(domain, masked=masked)
    final = initial_state(domain, run_spec, number=3)
    content = sent(domain, run_spec, final)
    both[1].context.node_config["work"] = str(both[1].folder / "elsewhere")
    for node in both:
        reply = node.reply_to(messages.EvaluateRequest(run_spec, 4), content)
        assert set(reply) == {messages.METRICS}
        assert not list(node.folder.rglob("state-*"))  # the run is over
    named = both[0].reply_to(messages.EvaluateRequest(run_spec, 4, base=final.digest))
    assert reason(named).startswith("the request must hold the final model")
    assert kept(both[0].folder) == kept(both[1].folder / "elsewhere") == {"1.state": content}
    assert kept(both[1].folder) == {}


@BOTH
def test_a_kept_model_is_not_replaced(both: list[Node], domain: KeyDomain, masked: bool):
    """The same state, sealed anew, is the kept one; another final model of the same run is refused."""
    run_spec = run_spec_of(domain, masked=masked)
    first, other = (initial_state(domain, run_spec, number=number) for number in (3, 4))
    content = sent(domain, run_spec, first)
    for again in (content, sent(domain, run_spec, first)):
        assert set(both[0].reply_to(messages.EvaluateRequest(run_spec, 4), again)) == {messages.METRICS}
    refused = both[0].reply_to(messages.EvaluateRequest(run_spec, 5), sent(domain, run_spec, other))
    assert reason(refused) == "this site keeps another final model of this run: it is not replaced"
    assert kept(both[0].folder) == {"1.state": content}


@BOTH
def test_a_round_is_evaluated_on_the_validation_split_and_the_final_model_on_the_test_split(
    both: list[Node], domain: KeyDomain, masked: bool
):
    """Two sequences here, and three; neither a round's new model nor a final one that is refused is kept."""
    run_spec, state = started(domain, masked=masked)
    (reply, _) = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    assert messages.REFUSAL in both[0].reply_to(messages.EvaluateRequest(run_spec, 4), state)
    assert kept(both[0].folder) == {}
    final = both[0].reply_to(messages.EvaluateRequest(run_spec, 2), messages.state_of(reply))
    assert [of.metric_records[messages.METRICS]["examples"] for of in (reply, final)] == [2, 3]


@pytest.mark.parametrize(("model", "masked"), [("clear", MASKED), ("clear", CLEAR), ("sealed", MASKED)])
def test_a_run_starts_from_an_initial_model(both: list[Node], domain: KeyDomain, model: str, masked: bool):
    """The first state has the model's rows, sealed about anything or in clear, the run's optimizer, and round 0."""
    run_spec = run_spec_of(domain, masked=masked, server_optimizer=ServerOptimizerConfig("fedavgm", 0.5))
    earlier = initial_state(domain, run_spec_of(domain), seed=9, number=7)
    content = earlier.to_bytes() if model == "clear" else sealed(domain, earlier, "the model of another run")
    reply = both[0].reply_to(messages.InitialRequest(run_spec, model), content)
    state = state_in(reply, domain, masked=masked)
    assert (state.round, state.rule) == (0, run_spec.server_optimizer)
    for name, rows in earlier.rows.items():
        np.testing.assert_array_equal(state.rows[name], rows)
    assert all(not moment.any() for moment in state.moments.values())


def test_a_sealed_model_stays_sealed(both: list[Node], domain: KeyDomain):
    """A site that allows runs without masking unseals no other run's model for the coordinator."""
    secret = sealed(domain, initial_state(domain, run_spec_of(domain), seed=9, number=7))
    request = messages.InitialRequest(run_spec_of(domain, masked=False), "sealed")
    text = reason(both[0].reply_to(request, secret))
    assert text == "a sealed initial model needs secure aggregation: set secure-aggregation=true"


def test_a_run_starts_from_no_state_of_its_own(both: list[Node], domain: KeyDomain):
    """Or a coordinator could show a site the aggregates of two lists, each unmasked by another site's vault."""
    run_spec = run_spec_of(domain)
    own = sealed(domain, initial_state(domain, run_spec, number=1))
    text = reason(both[0].reply_to(messages.InitialRequest(run_spec, "sealed"), own))
    assert text == "the initial model is a state of this run itself: choose a model of another run"


def test_a_run_is_masked_throughout_or_not_at_all(both: list[Node], domain: KeyDomain):
    """A request in clear within a masked run is refused, even if the policy allows runs in clear."""
    masked, clear = (run_spec_of(domain, masked=value) for value in (MASKED, CLEAR))
    state = initial_state(domain, masked)
    train_replies(both[:1], masked, sealed(domain, state))
    for request in (messages.TrainRequest(clear, 1), messages.EvaluateRequest(clear, 1)):
        text = reason(both[0].reply_to(request, state.to_bytes()))
        assert text == "a run is masked from its first request to its last, or not at all"


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


def test_an_aggregate_is_of_one_run_specification(both: list[Node], domain: KeyDomain):
    """A coordinator that makes only one of two sites train gets no aggregate that is the first one's update."""
    run_spec = run_spec_of(domain)
    idle = varied(run_spec, hyperparameters=replace(run_spec.training.hyperparameters, learning_rate=1e-12))
    state = sealed(domain, initial_state(domain, run_spec))
    replies = {**train_replies(both[:1], run_spec, state), **train_replies(both[1:], idle, state)}
    for of in (run_spec, idle):
        assert [reason(reply) for reply in accept_replies(both, of, state, aggregate_of(replies, run_spec))] == [
            CLOSED,
            CLOSED,
        ]
    honest = accept_replies(both, run_spec, state, aggregate_from(both, run_spec, state))
    assert [messages.Verdict.read(reply).reason for reply in honest] == ["", ""]


def test_a_site_s_own_policy_sets_the_minimum_of_its_aggregates(both: list[Node], domain: KeyDomain):
    """Its update is not unmasked alone, even if the policy of the site that unmasks would allow it."""

    def let_alone(node: Node) -> None:
        node.permit(secure_aggregation="optional", min_other_sites=0)
        path = policy_of(node.dataset)  # its vault's
        path.write_text(replace(SitePolicy.load(path), min_other_sites=0).to_yaml())

    run_spec = run_spec_of(domain)
    let_alone(both[0])
    state = sealed(domain, initial_state(domain, run_spec))
    alone = aggregate_from(both[1:], run_spec, state)
    (reply,) = accept_replies(both[:1], run_spec, state, alone)
    assert reason(reply) == CLOSED
    lax = replace(alone[0], parts=(replace(alone[0].parts[0], min_cohort=1),))
    (reply,) = accept_replies(both[:1], run_spec, state, (lax, alone[1]))
    assert reason(reply) == CLOSED
    let_alone(both[1])
    (reply,) = accept_replies(both[:1], run_spec, state, aggregate_from(both[1:], run_spec, state))
    assert messages.Verdict.read(reply).reason == ""


@pytest.mark.parametrize("model", ["clear", "sealed"])
def test_an_initial_model_that_does_not_fit_is_refused(both: list[Node], domain: KeyDomain, model: str):
    """Of another network, dtype, domain or classes, damaged, missing, or sealed where the request calls it clear."""
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

    def refused(content: bytes | None) -> str:
        request = messages.InitialRequest(run_spec, model)
        return reason(both[0].reply_to(request, content))

    for said, models in others.items():
        for other in models:
            assert refused(other.to_bytes() if model == "clear" else sealed(domain, other, "another run")) == said
    assert "came without a state" in refused(None)
    damaged = fitting.to_bytes()[:-1]
    if model == "clear":
        assert refused(damaged).startswith("not a global state")
        assert refused(sealed(domain, fitting)).startswith("not a global state")
    else:
        assert refused(damaged) == CLOSED
