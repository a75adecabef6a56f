"""A coordinator whose folder was lost: it rebuilds the run from what the vaults have, to the same model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import RecordDict
from masked_cohort import MaskedGrid, Node, config, log_of, model_of
from run_hospitals import DOMAIN, opened

from coordinator.server import app
from coordinator.server.run_state import RunState
from fedpp.errors import FederationError
from fedpp.keys.sealed_stage import SealedStage
from fedpp.protocol import masked_messages as masked
from fedpp.protocol import messages
from fedpp.protocol.run_contract import KnownContract, Parent
from fedpp.protocol.run_record import FederationRecord

NONCE, EXPIRES = "ab" * 32, 1_801_000_000
QUICK = {"wait_seconds": 0.1, "round_seconds": 0.1}


def fixed(out: Path) -> Path:
    """Return a results folder whose run has a fixed nonce and end, so that its weights can be repeated."""
    RunState(out).fix(NONCE, EXPIRES)
    return out


def state_of(out: Path) -> bytes:
    """Return the weights and moments of a run's result."""
    return SealedStage.unseal(DOMAIN.state_sealer(), [model_of(out).sealed]).stage.state.to_bytes()


def lost(nodes: list[Node], out: Path, kind: str, *, silent: int = 0) -> None:
    """Carry out a run until a site is silent in a phase of its second round; then lose the folder."""

    def from_round_2(content: RecordDict, usual: Callable[[], RecordDict]) -> RecordDict | None:
        return usual() if content.config_records[messages.CONFIG]["round"] == 1 else None

    nodes[silent].instead[kind] = from_round_2
    with pytest.raises(FederationError, match="still missing is"):
        app.federate(MaskedGrid(nodes), config(fixed(out), **QUICK))
    nodes[silent].instead.clear()
    shutil.rmtree(out)
    RunState(out).folder.mkdir(parents=True)


@pytest.mark.parametrize("kind", [masked.TRAIN, masked.RELEASE, masked.STEP])
def test_a_lost_folder_is_rebuilt_to_the_same_model(kind: str, tmp_path: Path) -> None:
    """Killed in a round, after others have replied: contract, certificates and statements come from the vaults."""
    with opened(tmp_path / "whole") as cohort:
        whole = app.federate(MaskedGrid([Node(of) for of in cohort]), config(fixed(tmp_path / "whole out")))
    out = tmp_path / "out"
    with opened(tmp_path / "lost") as cohort:
        nodes = [Node(of) for of in cohort]
        lost(nodes, out, kind, silent=2)
        before = [len(of.vault.where(NONCE)) for of in cohort]
        RunState(out).rebuild(NONCE)
        record = app.federate(MaskedGrid(nodes), config(out))
        assert all(masked.ACCEPT_RUN not in node.asked[node.asked.index(masked.WHERE) :] for node in nodes)
        assert [len(of.vault.where(NONCE)) > known for of, known in zip(cohort, before, strict=True)] == [True] * 3
    assert state_of(out) == state_of(tmp_path / "whole out")
    assert (record.contract, record.counts, record.chosen) == (whole.contract, whole.counts, whole.chosen)
    assert set(record.datasets) == {"East", "North", "South"}
    assert "rebuilt from 1 contracts and " in log_of(out)


@pytest.mark.parametrize(
    ("nonce", "changes", "reason"),
    [
        ("cd" * 32, {}, "no site that is connected knows a run of nonce cdcd"),
        (NONCE, {"rounds": 3}, "the run was started with rounds 2, got 3: give the settings of its start"),
        (NONCE, {"learning_rate": 0.01}, "the run was started with learning-rate 0.05, got 0.01"),
        (NONCE, {"monitor": "loss"}, "the run was started with monitor 'last', got 'loss'"),
    ],
)
def test_another_run_is_not_rebuilt(nonce: str, changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    """An unknown nonce, and settings of another run, are refused; no new run starts in its place."""
    out = tmp_path / "out"
    with opened(tmp_path / "lost") as cohort:
        nodes = [Node(of) for of in cohort]
        lost(nodes, out, masked.TRAIN)
        RunState(out).rebuild(nonce)
        with pytest.raises(FederationError, match=reason):
            app.federate(MaskedGrid(nodes), config(out, **changes))
        assert masked.ACCEPT_RUN not in nodes[0].asked[nodes[0].asked.index(masked.WHERE) :]


def test_a_site_s_inventions_are_left_out(tmp_path: Path) -> None:
    """A contract that nobody signed, and a revision: the run continues under the one that all accepted."""
    out = tmp_path / "out"
    with opened(tmp_path / "lost") as cohort:
        nodes = [Node(of) for of in cohort]
        lost(nodes, out, masked.TRAIN)

        def invents(_: RecordDict, usual: Callable[[], RecordDict]) -> RecordDict:
            found = usual()
            (text,) = masked.statements_of(found, masked.CONTRACTS)
            known = KnownContract.from_json(text)
            parent = Parent(known.contract.digest, 1, "ab" * 32)
            invented = (known.contract.changed(rounds=1), known.contract.changed(revision=1, parent=parent))
            return masked.all_stated(["{}"], [*(known.changed(contract=of).to_json() for of in invented), text])

        nodes[0].instead[masked.WHERE] = invents
        RunState(out).rebuild(NONCE)
        record: FederationRecord = app.federate(MaskedGrid(nodes), config(out))
    assert len(record.rounds) == 2
    assert "what East knows of the run: " in log_of(out)


def test_a_rebuilt_run_that_did_not_start_is_given_up(tmp_path: Path) -> None:
    """It does not start here either: the next resume makes another contract, which no site knows."""
    out = tmp_path / "out"
    with opened(tmp_path / "lost") as cohort:
        nodes = [Node(of) for of in cohort]
        nodes[2].instead[masked.REVEAL_COIN] = lambda *_: None
        with pytest.raises(FederationError, match="still missing is South"):
            app.federate(MaskedGrid(nodes), config(fixed(out), **QUICK))
        shutil.rmtree(out)
        RunState(out).folder.mkdir(parents=True)
        RunState(out).rebuild(NONCE)
        with pytest.raises(FederationError, match="still missing is"):
            app.federate(MaskedGrid(nodes), config(out, **QUICK))
        nodes[2].instead.clear()
        assert len(app.federate(MaskedGrid(nodes), config(out)).certified) == 3
    assert RunState(out).nonce("") != NONCE
