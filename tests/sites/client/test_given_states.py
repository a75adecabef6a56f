"""New models that the coordinator computed, for sites of the scheme more-frame: accepted by the same checks."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY, write_dataset
from flwr.app import ConfigRecord, RecordDict
from run_specs import varied
from site_nodes import (
    Node,
    Plaintext,
    content_of,
    initial_state,
    node,
    reason,
    run_spec_of,
    state_in,
    train_reply,
)

from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.round_context import Aggregate, Contribution
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol import messages
from fedpp.protocol.run_spec import RunSpec

FRAMES = KeyDomain.of_secret(bytes(range(32)), n=1, scheme="more-frame")
NETWORK = TINY.changed(patch=2)
RUN_SPEC = run_spec_of(FRAMES, network=NETWORK)
TOTAL = Aggregate((Contribution("north", 6), Contribution("south", 6)))


@pytest.fixture
def nodes(tmp_path: Path, sockets: str, plaintext: Plaintext) -> Iterator[list[Node]]:
    """Return two sites of the scheme more-frame beside their vaults, with masking optional."""
    made = []
    for name in ("north", "south"):
        dataset = write_dataset(tmp_path / f"data of {name}", FRAMES, plaintext)
        made.append(node(tmp_path / name, sockets, dataset, FRAMES, name))
        made[-1].permit(secure_aggregation="optional")
    with made[0].beside_vault(), made[1].beside_vault():
        yield made


def stepped(before: GlobalState, by: float = 0.01) -> GlobalState:
    """Return the state after a round that moved each weight a little."""
    rows = {name: (values * (1 + by)).astype(before.dtype) for name, values in before.rows.items()}
    return replace(before, round=before.round + 1, attempt=1, rows=rows)


def shown(each: Node, run_spec: RunSpec, before: GlobalState, made: bytes, number: int = 1) -> RecordDict:
    """Return a site's reply to a state in place of an aggregate."""
    domain = each.site.domain
    content = content_of(domain, messages.AcceptRequest(run_spec, number, keep=True), before.to_bytes())
    content[messages.SUM] = ConfigRecord({messages.SUM: TOTAL.to_json()})
    content[messages.ARRAYS][messages.AFTER] = messages.pack_state(made)
    return each.send("query.accept", content)


def test_sites_accept_a_model_of_the_coordinator(nodes: list[Node]):
    """Each evaluates it, names it by its digest and keeps it; a second round starts from it."""
    before = initial_state(FRAMES, RUN_SPEC)
    after = stepped(before)
    for each in nodes:
        reply = shown(each, RUN_SPEC, before, after.to_bytes())
        assert messages.Verdict.read(reply) == messages.Verdict(after.digest, "")
        assert state_in(reply) == after
        assert reply[messages.METRICS]["examples"] == 2
    later = stepped(after)
    assert messages.Verdict.read(shown(nodes[0], RUN_SPEC, after, later.to_bytes(), 2)) == messages.Verdict(
        later.digest, ""
    )
    assert "is not the one that this site computed" in reason(
        shown(nodes[0], RUN_SPEC, stepped(before, 0.02), later.to_bytes(), 2)
    )


def test_a_model_beyond_the_update_check_is_rejected(nodes: list[Node]):
    """The checks are those of an aggregate: the step's norm, and the loss against that of the model before."""
    before = initial_state(FRAMES, RUN_SPEC)
    assert (
        "Euclidean norm"
        in messages.Verdict.read(shown(nodes[0], RUN_SPEC, before, stepped(before, 11.0).to_bytes())).reason
    )
    careful = varied(RUN_SPEC, max_loss_increase=1e-9)
    after = stepped(before)
    assert messages.Verdict.read(shown(nodes[1], careful, before, after.to_bytes())).reason == ""
    loud = stepped(after, 7.0)
    assert "loss rose" in messages.Verdict.read(shown(nodes[1], careful, after, loud.to_bytes(), 2)).reason


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda after: replace(after, salt="0" * 64).to_bytes(), "of another attempt, or of another run"),
        (lambda after: replace(after, attempt=2).to_bytes(), "of another attempt, or of another run"),
        (lambda after: replace(after, classes=("yes", "no")).to_bytes(), "of another attempt, or of another run"),
        (lambda after: replace(after, round=2).to_bytes(), "is of round 2, expected that of round 1"),
        (lambda after: replace(after, round=0).to_bytes(), "is of round 0, expected that of round 1"),
        (lambda after: replace(after, domain="d" * 64).to_bytes(), "of another domain, network or server optimizer"),
        (lambda after: after.to_bytes()[:-1], "not a global state"),
        (lambda after: b"junk", "not a global state"),
    ],
    ids=["salt", "attempt", "classes", "later", "earlier", "domain", "cut", "junk"],
)
def test_another_state_than_the_next_is_refused(nodes: list[Node], change: Callable[[GlobalState], bytes], text: str):
    """Of another run, attempt, round or domain, or damaged: the site names the reason, and keeps nothing of it."""
    before = initial_state(FRAMES, RUN_SPEC)
    assert text in reason(shown(nodes[0], RUN_SPEC, before, change(stepped(before))))
    good = stepped(before, 0.02)
    assert messages.Verdict.read(shown(nodes[0], RUN_SPEC, before, good.to_bytes())) == messages.Verdict(
        good.digest, ""
    )


def test_rows_of_slots_take_aggregates_only(both: list[Node], domain: KeyDomain):
    """In the scheme `more` the median of rows is not the median of weights: a site refuses such a model."""
    run_spec = run_spec_of(domain)
    before = initial_state(domain, run_spec)
    assert "is for the frame form" in reason(shown(both[0], run_spec, before, stepped(before).to_bytes()))


def test_a_site_trains_from_a_model_of_the_coordinator(nodes: list[Node]):
    """Its reply in the next round is an update of the model that the coordinator computed."""
    before = initial_state(FRAMES, RUN_SPEC)
    after = stepped(before)
    assert messages.Verdict.read(shown(nodes[0], RUN_SPEC, before, after.to_bytes())).reason == ""
    reply = nodes[0].send("train", content_of(FRAMES, messages.TrainRequest(RUN_SPEC, 2), after.to_bytes()))
    assert after.digest in messages.Origin.read(reply).round
    assert messages.REFUSAL not in train_reply(nodes[1], RUN_SPEC)
