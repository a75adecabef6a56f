"""The ClientApp's part in masked runs, with real messages and real vaults: it trains once, and relays the rest."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import write_dataset
from flwr.app import RecordDict
from masked_nodes import MaskedRun, beside_vaults, contract_of, values
from site_nodes import (
    CLOSED,
    NONCE,
    OTHER,
    Node,
    Plaintext,
    node,
    participants_of,
    proof,
    reason,
    started,
    update_in,
)

from fedpp.aggregation.global_state import GlobalState, in_order
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.server_step import step
from fedpp.errors import MissingLinksError
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.messages import TrainRequest
from fedpp.vault_api import vault_pb2_grpc

TRAIN = masked_messages.TRAIN


@pytest.fixture
def three(
    trainers: None, north: Node, south: Node, tmp_path: Path, sockets: str, domain: KeyDomain, plaintext: Plaintext
) -> Iterator[list[Node]]:
    """Return three nodes in the order of their names, beside their vaults; 7 of 18 training labels are positive."""
    del trainers
    rare = np.where(np.arange(len(plaintext[1])) == 1, 1, 0)
    dataset = write_dataset(tmp_path / "eastern", domain, (plaintext[0] * 1.2 - 0.1, rare))
    nodes = [node(tmp_path / "east", sockets, dataset, domain, "east"), north, south]
    with beside_vaults(nodes):
        yield nodes


def in_clear(
    nodes: list[Node], state: GlobalState, run: MaskedRun, number: int, labels: tuple[int, ...] = ()
) -> GlobalState:
    """Return the state after a round of the nodes' updates in clear, averaged by hand."""
    spec, domain, updates = replace(run.contract.spec, masked=False), nodes[0].site.domain, []
    participants = participants_of(domain, proof(domain, "south"), proof(domain, "east"))
    ring = ring_of(spec)
    total = np.zeros(spec.network.parameters() * state.n, ring.dtype)
    for each in nodes:
        each.permit(secure_aggregation="optional")
        request, base = TrainRequest(spec, number, labels=labels), replace(state, round=number - 1)
        reply = each.reply_to(request, base.to_bytes(), participants=participants)
        updates.append(update_in(reply, spec))
        total = total + updates[-1]
    mean, start = {}, 0
    decoded = ring.decode(total, spec.examples)
    for name, rows in state.rows.items():
        mean[name] = decoded[start : start + rows.size].reshape(rows.shape)
        start += rows.size
    return step(state, mean, spec.server_optimizer, domain.evaluation_key().algebra())


def test_a_masked_run_trains_what_a_run_in_clear_trains(three: list[Node]) -> None:
    """After a round all vaults have one state, which is to the bit that of the same updates in clear."""
    run = MaskedRun(three, contract_of(three)).start()
    before = run.stage(three[0]).state
    run.round(1)
    after = [run.stage(each).state for each in three]
    assert after[0] == after[1] == after[2]
    expected = in_clear(three, before, run, 1)
    for name, rows in expected.rows.items():
        np.testing.assert_array_equal(after[0].rows[name], rows)
    assert any((rows != before.rows[name]).any() for name, rows in expected.rows.items())


def test_a_balanced_round_is_that_of_a_run_in_clear(three: list[Node]) -> None:
    """In round 2 both weigh by the labels that round 1 opened, to the bit; with others the update is another one."""
    run = MaskedRun(three, contract_of(three, rounds=2, positive_weight=0.0)).start()
    run.round(1)
    before, labels = run.stage(three[0]).state, run.stage(three[0]).labels
    assert labels == (11, 7)
    run.round(2)
    after = run.stage(three[0]).state
    expected = in_clear(three, before, run, 2, labels)
    for each in three:
        each.forget()
    unweighted = in_clear(three, before, run, 2)
    for name, rows in expected.rows.items():
        np.testing.assert_array_equal(after.rows[name], rows)
    assert any((rows != after.rows[name]).any() for name, rows in unweighted.rows.items())


def test_a_run_is_validated_and_tested_at_its_end(three: list[Node]) -> None:
    """Each round opens counts of the split that is due, over all sites; the closing rounds train nothing."""
    run = MaskedRun(three, contract_of(three)).start()
    counted = []
    for number in (1, 2, 3):
        state = run.stage(three[0]).state
        run.round(number)
        stage = run.stage(three[0])
        assert stage.counts is not None
        counted.append((stage.counts.examples, stage.state == state))
    assert counted == [(6, False), (6, True), (9, True)]
    assert run.stage(three[0]).due == "end"
    assert reason(run.ask(three[0], TRAIN, 4)).startswith("its vault refuses: ")


def test_a_site_trains_once(three: list[Node]) -> None:
    """The vault repeats the masked update byte for byte, without the dataset, and after the site was restarted."""
    run = MaskedRun(three, contract_of(three)).start()
    run.all_reply(TRAIN, 1)
    east = three[0]
    first = run.replies[TRAIN]["east"]
    for shard in east.dataset.path.glob("frames-*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    again = run.ask(east, TRAIN, 1)
    assert masked_messages.statement_of(again) == masked_messages.statement_of(first)
    np.testing.assert_array_equal(values(again), values(first))


def test_a_masked_update_is_the_trained_one(three: list[Node]) -> None:
    """The sum of the masked updates, opened by the members, is not the sum of what the coordinator was sent."""
    run = MaskedRun(three, contract_of(three)).start()
    before = run.stage(three[0]).state
    run.round(1)
    after, spec = run.stage(three[0]).state, run.contract.spec
    ring = ring_of(spec)
    total = sum(
        values(reply)[: spec.network.parameters() * 2].astype(np.uint64) for reply in run.replies[TRAIN].values()
    )
    claimed = ring.decode(np.asarray(total, ring.dtype), spec.examples)
    true = np.concatenate(in_order({name: after.rows[name] - rows for name, rows in before.rows.items()}, spec.network))
    assert np.abs(true).max() < 1 < np.abs(claimed).max()


def test_a_request_that_does_not_fit_is_refused(three: list[Node]) -> None:
    """Of another app bundle, another domain or another task; and a run whose contract the site has not kept."""
    contract = contract_of(three)
    bundle = MaskedRun(three, replace(contract, bundle="ab" * 32))
    assert reason(bundle.accept(three[0])).startswith("the contract is for app bundle abababababababab, this site runs")
    domain = MaskedRun(three, replace(contract, spec=replace(contract.spec, domain=OTHER)))
    assert reason(domain.accept(three[0])).startswith("this site belongs to domain")
    task = MaskedRun(three, contract_of(three, frames=16))
    assert reason(task.accept(three[0])).startswith("the network is for ")
    run = MaskedRun(three, contract).start()
    shutil.rmtree(three[0].folder / "contracts")
    assert reason(run.ask(three[0], TRAIN, 1)).startswith("it lacks the contract of this run")
    run.accept(three[0])
    assert messages.REFUSAL not in run.ask(three[0], TRAIN, 1)


def test_a_changed_contract_is_not_trained(three: list[Node]) -> None:
    """A contract whose file was altered is as good as none."""
    run = MaskedRun(three, contract_of(three)).start()
    (kept,) = (three[0].folder / "contracts").iterdir()
    kept.write_text(kept.read_text().replace('"rounds":1', '"rounds":2'))
    assert reason(run.ask(three[0], TRAIN, 1)).startswith("it lacks the contract of this run")


def test_the_coordinator_learns_which_statements_a_vault_lacks(three: list[Node]) -> None:
    """The refusal names the places from which statements are missing, and nothing else is needed than these."""
    run = MaskedRun(three, contract_of(three))
    run.all_reply(masked_messages.ACCEPT_RUN)
    *some, last = run.statements
    lacking = MaskedRun(three, run.contract, some)
    error = MissingLinksError.of_text(reason(lacking.ask(three[0], masked_messages.REVEAL_COIN)))
    assert error is not None
    assert error.places == {"south": 0}
    lacking.statements = [last]
    assert messages.REFUSAL not in lacking.ask(three[0], masked_messages.REVEAL_COIN)


def test_no_path_of_the_vault_leaves_the_site(three: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """A vault that is away is reported by its kind; its own refusals, which are public, go to the coordinator."""
    run = MaskedRun(three, contract_of(three))
    assert reason(run.ask(three[0], masked_messages.REVEAL_COIN)).startswith("its vault refuses: this vault has not")
    monkeypatch.setattr("fedpp.vault_api.vault_connection.CONNECT_SECONDS", 0.2)
    three[0].context.node_config["vault"] = "unix:/nowhere/vault.sock"
    assert reason(run.ask(three[0], masked_messages.REVEAL_COIN)) == CLOSED


class FailingVault(vault_pb2_grpc.MaskedRunsServicer):
    """A vault whose refusals have this text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def RevealCoin(self, requests: Any, context: grpc.ServicerContext) -> None:  # noqa: N802  gRPC's name
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, self._text)


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("this vault has burned that round", "its vault refuses: this vault has burned that round"),
        ("cannot write the audit log /hospital/audit.log: No space left on device", CLOSED),
    ],
)
def test_a_refusal_with_a_path_stays_at_the_site(north: Node, text: str, reported: str) -> None:
    """Whatever a vault says in a masked run reaches the coordinator, unless it names a path of the hospital."""
    server = grpc.server(ThreadPoolExecutor(1))
    vault_pb2_grpc.add_MaskedRunsServicer_to_server(FailingVault(text), server)
    server.add_insecure_port(str(north.context.node_config["vault"]))
    server.start()
    request = masked_messages.StatementsRequest("ab" * 32, ())
    content = RecordDict({messages.CONFIG: request.to_record()})
    assert reason(north.send(masked_messages.REVEAL_COIN, content)) == reported
    server.stop(None).wait()


def test_a_run_in_clear_needs_a_policy_that_allows_it(three: list[Node], domain: KeyDomain) -> None:
    """A site that requires secure aggregation refuses every message of a run in clear."""
    three[1].permit(secure_aggregation="required")
    run_spec, state = started(domain)
    for request in (
        messages.InitialRequest(run_spec),
        TrainRequest(run_spec, 1),
        messages.EvaluateRequest(run_spec, 1),
    ):
        text = reason(three[1].reply_to(request, state))
        assert text.startswith("this site's policy requires secure aggregation")


def test_where_fetch_and_load(three: list[Node]) -> None:
    """A site that has the newest state sends it sealed, and all statements of the run; another one may take it."""
    run = MaskedRun(three, contract_of(three)).start()
    run.round(1)
    found = masked_messages.statements_of(run.send(three[0], masked_messages.WHERE, (NONCE,)))
    assert set(run.statements[:-2]) <= set(found)  # the steps of the other two are not known to it
    reply = run.send(three[0], masked_messages.FETCH, (run.contract.digest,))
    sealed = messages.state_of(reply)
    arrays = {messages.ARRAYS: masked_messages.sealed_state(sealed)}
    asked = run.contract.digest, tuple(run.statements)
    assert list(run.send(three[1], masked_messages.LOAD, asked, **arrays)) == [masked_messages.STATEMENT]
