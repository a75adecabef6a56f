"""What a coordinator has of a masked run, searched for anything but chance; the same search finds the unmasked run.

Real initial weights and trained updates of two sites, every message that the coordinator sent or got, every file that
it wrote, and all that it printed.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from battery import arrays_of, findings, is_state, separated
from conftest import TINY, write_dataset
from coordinator_runs import LocalGrid, Site, config, describe
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from global_states import flat
from masked_sites import DOMAIN

from coordinator.server.app import federate
from fedpp.aggregation.global_state import GlobalState
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights
from simulations.benchmarks.simulated_client import SimulatedClient

SETTINGS = {"filters": "4,8", "dense": 48, "lstm": 24}
NETWORK = TINY.changed(filters=(4, 8), dense=48, lstm=24)
VIEWS = {True: "<f8", False: "<u8"}  # of the numbers in a state, and of words
WEIGHTS = {"initial weights", "model"}
TEXTS = ("federation.json", "run/lock", "run/log", "run/nonce", "run/progress")


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Tell Flower that messages are made inside a run, as its processes do."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@dataclass(frozen=True)
class Learner(SimulatedClient):
    """A site that trains for real, from weights of its vault's kind; it notes what the coordinator must not know."""

    dataset: EncryptedDataset | None = None
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    def rows_of_round_0(self, network: ModelSpec) -> dict[str, np.ndarray]:
        rows = encrypted_initial_weights(network, 0, DOMAIN.evaluation_key())
        self._note("initial weights", rows)
        return rows

    def update(self, before: GlobalState) -> dict[str, np.ndarray]:
        trainer = EncryptedTrainer(
            before.network,
            DOMAIN.evaluation_key().algebra(),
            Hyperparameters(batch_size=4, learning_rate=0.01),
            before.dtype,
        )
        trainer.load(before.rows)
        trainer.fit(self.dataset, epochs=1, seed=(0, before.round))
        rows = {name: values - before.rows[name] for name, values in trainer.rows().items()}
        self._note(f"model of round {before.round}", before.rows)
        self._note(f"update of {self.description.name} in round {before.round + 1}", rows)
        return rows

    def _note(self, name: str, rows: Mapping[str, np.ndarray]) -> None:
        self.truth[name] = encryption.decrypt(DOMAIN, flat(rows, NETWORK).reshape(-1, 2))


@dataclass
class Hospital(Site):
    """A site whose messages are kept."""

    player_: SimulatedClient | None = None
    heard: list[bytes] = field(default_factory=list)

    def player(self) -> SimulatedClient:
        assert self.player_ is not None
        return self.player_

    def answer(self, question: Message) -> RecordDict | None:
        answer = super().answer(question)
        for content in (question.content, answer or RecordDict()):
            self.heard += [tensor for _, tensor in arrays_of(content)]
        return answer


@dataclass(frozen=True)
class Seen:
    """What the coordinator had, and what it must not know."""

    tensors: list[bytes]
    files: dict[str, bytes]
    printed: str
    truth: dict[str, np.ndarray]


def run(folder: Path, datasets: list[EncryptedDataset], capsys: pytest.CaptureFixture[str], *, masking: bool) -> Seen:
    truth: dict[str, np.ndarray] = {}
    sites = []
    for name, dataset in zip("ab", datasets, strict=True):
        description = describe(name, sequences=(6, 2, 1), patients=(6, 2, 1))
        sites.append(Hospital(description, player_=Learner(description, DOMAIN, dataset=dataset, truth=truth)))
    federate(LocalGrid(sites), config(folder, secure_aggregation=masking, **SETTINGS))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = capsys.readouterr()
    return Seen([tensor for site in sites for tensor in site.heard], files, out.out + out.err, truth)


@pytest.fixture
def datasets(tmp_path: Path, plaintext: tuple[np.ndarray, np.ndarray]) -> list[EncryptedDataset]:
    return [write_dataset(tmp_path / name, DOMAIN, plaintext) for name in "ab"]


@pytest.mark.filterwarnings("ignore:FastICA did not converge")
def test_what_a_coordinator_has_of_a_masked_run_is_chance(
    tmp_path: Path, datasets: list[EncryptedDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    """No test of the battery finds anything in a tensor that it sent, got or wrote; in clear, they find all of it.

    Two sites of the same data train alike, so that about 500 correlations are independent: at five sigmas, chance is
    taken for a leak once in 3,000 runs.
    """
    masked, clear = (run(tmp_path / str(masking), datasets, capsys, masking=masking) for masking in (True, False))
    assert len(masked.tensors) > 12
    assert [tensor for tensor in masked.tensors if len(tensor) <= 1000] == []
    tensors = {*masked.tensors, masked.files["model.sealed"]}  # most were sent to both sites
    assert sum(map(is_state, tensors)) >= 3
    assert sum(not is_state(tensor) for tensor in tensors) >= 6  # two updates a round, and their sum
    for tensor in tensors:
        assert findings(tensor, masked.truth) == set()
        assert separated(tensor, masked.truth, VIEWS[is_state(tensor)]) == set()

    states = {tensor for tensor in clear.tensors if is_state(tensor)}
    unhidden = {sealed_by_nothing(state) for state in states}
    words = {*clear.tensors} - states
    for of, kinds in ((states, WEIGHTS), (unhidden, WEIGHTS), (words, {"update"})):
        found = set().union(*(findings(tensor, clear.truth) for tensor in of))
        assert {"byte frequencies", "serial correlation", "compressible"} <= found
        assert {f"correlation with {kind}" for kind in kinds} <= found
        assert kinds <= set().union(*(separated(tensor, clear.truth, VIEWS[is_state(tensor)]) for tensor in of))


def sealed_by_nothing(state: bytes) -> bytes:
    """Return a state in the form of a sealed one, in clear."""
    record = state + os.urandom(16)
    return b'{"about":"nothing"}\n' + len(record).to_bytes(4, "little") + record


def test_nothing_else_that_it_wrote_or_printed_tells_a_weight(
    tmp_path: Path, datasets: list[EncryptedDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    """The record and the notes hold counts and names: no number of theirs is a weight, and there is no other file."""
    seen = run(tmp_path / "run", datasets, capsys, masking=True)
    assert set(seen.files) == {"model.sealed", *TEXTS}
    texts = "".join(seen.files[name].decode(errors="replace") for name in TEXTS) + seen.printed
    weights = _texts(np.concatenate(list(seen.truth.values())))
    assert [weight for weight in weights if weight in texts] == []


def _texts(values: np.ndarray) -> Iterable[str]:
    return [text[:12] for text in map(repr, values.tolist()) if len(text) >= 16]
