"""Secure aggregation on real ultrasound: masked and in clear the same model to the bit, and chance at the coordinator.

Apps and vaults are real; the in-process engine carries the messages, and the test keeps them. The run in clear starts
from the initial weights that the members of the masked run drew together.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from battery import VIEWS, arrays_of, findings, is_state, separated
from conftest import DATA
from flwr.app import Message, RecordDict
from global_states import flat

from fedpp.aggregation.global_state import UNSALTED, GlobalState
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.vault_api.vault_client import VaultClient
from simulations.hospitals import Hospitals, prepare
from simulations.in_process_engine import InProcessClient, federate_clients
from simulations.scenario import Scenario
from simulations.simulated_federation import vaults

SMALL = {"sites": 3, "rounds": 2, "epochs": 1, "frames": 2, "size": 16, "filters": (4, 8), "dense": 16, "lstm": 8}
KINDS = {"initial weights", "model", "update"}
TEXTS = (*("federation.json", "run/contract", "run/lock", "run/log", "run/nonce", "run/progress", "run/statements"),)
MAKING_STATES = (masked_messages.START_RUN, masked_messages.STEP)


@dataclass(frozen=True)
class Hospital(InProcessClient):
    """Real site whose requests and replies are kept."""

    heard: list[tuple[str, int, RecordDict, RecordDict]] = field(default_factory=list)  # kind, round, request, reply
    made: dict[int, GlobalState] = field(default_factory=dict)  # in its vault: states by their round

    def answer(self, request: Message) -> RecordDict:
        reply = super().answer(request)
        assert messages.REFUSAL not in reply, reply
        round_ = int(request.content.config_records[messages.CONFIG].get("round", 0))
        self.heard.append((request.metadata.message_type, round_, request.content, reply))
        if request.metadata.message_type in MAKING_STATES:
            digest = str(request.content.config_records[messages.CONFIG]["contract"])
            with VaultClient(self.config.vault) as vault:
                state = RunStage.from_bytes(vault.run_stage(digest)).state
            assert self.made.setdefault(state.round, state) == state
        return reply


@dataclass(frozen=True)
class Run:
    """Everything that a coordinator sent, received, wrote and printed."""

    sites: list[Hospital]
    files: Mapping[str, bytes]
    printed: str

    def messages(self) -> Iterator[RecordDict]:
        """Yield the content of each message."""
        for site in self.sites:
            for *_, request, reply in site.heard:
                yield from (request, reply)

    def arrays(self) -> Iterator[tuple[str, bytes]]:
        """Yield each array of a message, its name and its bytes."""
        for content in self.messages():
            yield from arrays_of(content)

    def states(self) -> dict[int, GlobalState]:
        """Return the state of each round, which must be one: of the sites' vaults, or in messages in clear."""
        found: dict[int, GlobalState] = {}
        for site in self.sites:
            for number, state in site.made.items():
                assert found.setdefault(number, state) == state
        if found:
            return found
        for name, content in self.arrays():
            if name == messages.STATE:
                state = replace(GlobalState.from_bytes(content), salt=UNSALTED)  # the initial model has no salt yet
                assert found.setdefault(state.round, state) == state
        return found


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scenario, Hospitals]]:
    """Return three hospitals with the real ultrasound's patients, and their vaults."""
    scenario = Scenario.load("ultrasound").changed(dtype="float64", control_draws=0, **SMALL)
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        made = prepare(scenario, DATA / "ultrasound_sequences", tmp_path_factory.mktemp("run"), Path(sockets))
        with vaults(made.sites, made.passphrase_file):
            yield scenario, made


@pytest.fixture(scope="module")
def runs(hospitals: tuple[Scenario, Hospitals], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Run]:
    """Return a run with secure aggregation, and one without."""
    scenario, made = hospitals
    found = {}
    for masked in (True, False):
        sites = [Hospital(config, number) for number, config in enumerate(made.sites, 1)]
        folder, printed = tmp_path_factory.mktemp("run") / "out", StringIO()
        chosen = scenario.changed(secure_aggregation=masked)
        config = chosen.run_config(made.domain.card().to_json(), folder)
        if not masked:
            found[True].states()[0].model().save(initial := tmp_path_factory.mktemp("initial") / "model.npz")
            config = config.changed(initial_model=str(initial))
        with redirect_stdout(printed), redirect_stderr(printed):
            federate_clients(sites, config)
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        found[masked] = Run(sites, files, printed.getvalue())
    return found


def truth_of(run: Run, states: Mapping[int, GlobalState], domain: KeyDomain) -> dict[str, np.ndarray]:
    """Return the decrypted secrets of a run in clear: initial weights, models, and each site's updates."""
    network = states[0].network

    def decrypted(rows: np.ndarray) -> np.ndarray:
        return encryption.decrypt(domain, rows.reshape(-1, 2))

    truth = {f"model of round {number}": decrypted(flat(state.rows, network)) for number, state in states.items()}
    truth["initial weights"] = truth.pop("model of round 0")
    for site in run.sites:
        for kind, number, request, content in site.heard:
            if kind == "train":
                run_spec = messages.TrainRequest.read(request).run_spec
                ring = ring_of(run_spec)
                examples = int(content.metric_records[messages.METRICS][messages.EXAMPLES])
                words = messages.words_of(content, ring.bits, network.parameters() * 2)
                truth[f"update of {site.number} in round {number}"] = decrypted(ring.decode(words, examples))
    return truth


@pytest.mark.filterwarnings("ignore:FastICA did not converge")
def test_a_masked_run_is_the_run_in_clear_and_the_coordinator_has_chance(
    hospitals: tuple[Scenario, Hospitals], runs: dict[bool, Run]
) -> None:
    """Rows of every round are equal to the bit; the battery finds nothing in the messages of the masked run.

    In clear it finds all three kinds. With about 30 tensors of 1,000 correlations, chance looks like a leak once in
    1,500 runs.
    """
    domain = hospitals[1].domain
    masked, clear = (runs[mask].states() for mask in (True, False))
    assert sorted(masked) == sorted(clear) == [0, 1, 2]
    for number, state in masked.items():
        for name, rows in state.rows.items():
            np.testing.assert_array_equal(rows, clear[number].rows[name])
    assert any((masked[2].rows[name] != rows).any() for name, rows in masked[0].rows.items())

    truth = truth_of(runs[False], clear, domain)
    assert len(truth) == 3 + 2 * len(runs[False].sites)
    # A carry says how often additions of uniform words wrapped, which follows from their sum and how many they are.
    had = {content for name, content in runs[True].arrays() if name != masked_messages.CARRY}
    assert CertifiedModel.from_bytes(runs[True].files["model.sealed"]).sealed in had
    assert min(map(len, had)) > 1000
    assert sum(map(is_state, had)) == 1
    assert sum(not is_state(tensor) for tensor in had) == 4 * (len(runs[True].sites) + 1)  # updates, and their sum
    for tensor in had:
        assert findings(tensor, truth) == set()
        assert separated(tensor, truth, VIEWS[1 + is_state(tensor)]) == set()

    shown = {content for _, content in runs[False].arrays()}
    states = {tensor for tensor in shown if is_state(tensor)}
    for tensors, kinds in (
        (states, KINDS - {"update"}),
        ({sealed_by_nothing(state) for state in states}, KINDS - {"update"}),
        (shown - states, {"update"}),
    ):
        found = set().union(*(findings(tensor, truth) for tensor in tensors))
        assert {"byte frequencies", "serial correlation", "compressible"} <= found
        assert {f"correlation with {kind}" for kind in kinds} <= found
        assert kinds <= set().union(*(separated(tensor, truth, VIEWS[1 + is_state(tensor)]) for tensor in tensors))


def sealed_by_nothing(state: bytes) -> bytes:
    """Return a state in the form of a sealed one, in clear."""
    record = state + os.urandom(16)
    return b'{"about":"nothing"}\n' + len(record).to_bytes(4, "little") + record


def test_nothing_else_of_a_run_holds_a_weight(hospitals: tuple[Scenario, Hospitals], runs: dict[bool, Run]) -> None:
    """The record, the log, and the records of messages contain no number of a model or an update."""
    domain = hospitals[1].domain
    truth = truth_of(runs[False], runs[False].states(), domain)
    written = "".join(runs[True].files[name].decode(errors="replace") for name in TEXTS)
    texts = written + runs[True].printed + "".join(_values(runs[True]))
    numbers = np.concatenate(list(truth.values()))
    spelled = {text[:12] for text in map(repr, numbers.tolist()) if len(text) >= 16}
    assert len(spelled) > 1000
    assert set(runs[True].files) == {"model.sealed", *TEXTS}
    assert spelled & {texts[start : start + 12] for start in range(len(texts))} == set()


def _values(run: Run) -> Iterator[str]:
    values: list[Any] = []
    for content in run.messages():
        for record in (*content.config_records.values(), *content.metric_records.values()):
            values += record.values()
    return map(repr, values)
