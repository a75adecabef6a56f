"""What a coordinator has of a masked run, searched for anything but chance; the same search finds the unmasked run.

Real initial weights and trained updates of two sites, every message that the coordinator sent or got, every file that
it wrote, and all that it printed.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset
from coordinator_runs import LocalGrid, Site, config, describe
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from masked_sites import DOMAIN, Player
from scipy.stats import chi2
from sklearn.decomposition import FastICA

from coordinator.app import federate
from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.learning.global_state import GlobalState, flat
from fedpp.learning.initial import encrypted_initial_weights
from fedpp.learning.training import EncryptedTrainer
from fedpp.network import NetworkSpec
from fedpp.protocol import wire
from fedpp.recipe import Recipe

SETTINGS = {"filters": "4,8", "dense": 48, "lstm": 24}
NETWORK = NetworkSpec(frames=2, height=8, width=8, channels=1, classes=2, filters=(4, 8), dense=48, lstm=24)
SIGMAS = 5.0


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Tell Flower that messages are made inside a run, as its processes do."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@dataclass(frozen=True)
class Learner(Player):
    """A site that trains for real, from weights of its vault's kind; it notes what the coordinator must not know."""

    dataset: EncryptedDataset | None = None
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    def rows_of_round_0(self, network: NetworkSpec) -> dict[str, np.ndarray]:
        rows = encrypted_initial_weights(network, 0, DOMAIN.evaluation_key())
        self._note("initial weights", rows)
        return rows

    def update(self, before: GlobalState) -> dict[str, np.ndarray]:
        trainer = EncryptedTrainer(
            before.network, DOMAIN.evaluation_key().algebra(), Recipe(batch_size=4, learning_rate=0.01), before.dtype
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

    player_: Player | None = None
    heard: list[bytes] = field(default_factory=list)

    def player(self) -> Player:
        assert self.player_ is not None
        return self.player_

    def answer(self, question: Message) -> RecordDict | None:
        answer = super().answer(question)
        for content in (question.content, answer or RecordDict()):
            if wire.ARRAYS in content:
                for array in content.array_records[wire.ARRAYS].values():
                    self.heard.append(array.data[10 + int.from_bytes(array.data[8:10], "little") :])  # NumPy's header
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
        sites.append(Hospital(description, player_=Learner(description, dataset=dataset, truth=truth)))
    federate(LocalGrid(sites), config(folder, masking=masking, **SETTINGS))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = capsys.readouterr()
    return Seen([tensor for site in sites for tensor in site.heard], files, out.out + out.err, truth)


@pytest.fixture
def datasets(tmp_path: Path, plaintext: tuple[np.ndarray, np.ndarray]) -> list[EncryptedDataset]:
    return [write_dataset(tmp_path / name, DOMAIN, plaintext) for name in "ab"]


def payload(tensor: bytes) -> bytes:
    """Return what of a tensor must look like chance: of a sealed state all but its first line and the lengths in it."""
    if not tensor.startswith(b'{"about":'):
        return tensor
    rest = tensor.partition(b"\n")[2]
    records = []
    while rest:
        length = int.from_bytes(rest[:4], "little")
        records.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return b"".join(records)


def findings(tensor: bytes, truth: Mapping[str, np.ndarray]) -> set[str]:
    """Return what a battery of tests finds in bytes: `SIGMAS` sigmas are one false alarm in two million."""
    content = payload(tensor)
    data = np.frombuffer(content, np.uint8)
    found = set()
    counts = np.bincount(data, minlength=256)
    if chi2.sf(((counts - len(data) / 256) ** 2 / (len(data) / 256)).sum(), 255) < 1e-7:
        found.add("byte frequencies")
    for lag in (1, 2, 4, 8, 16):
        if is_correlated(data[:-lag], data[lag:]):
            found.add("serial correlation")
    if len(zlib.compress(content, 9)) < len(content):
        found.add("compressible")
    for view in ("<u4", "<u8", "<f8"):
        values = _numbers(content, view)
        found |= {f"correlation with {_kind(name)}" for name, of in truth.items() if _shows(values, of)}
    return found


def _shows(values: np.ndarray, of: np.ndarray) -> bool:
    """Tell whether a column of what could be rows is correlated with the truth; a few numbers may come before them."""
    signals = (values[offset : offset + 2 * len(of)] for offset in range(2))
    columns = (column for signal in signals if len(signal) == 2 * len(of) for column in signal.reshape(-1, 2).T)
    return any(is_correlated(column, of) for column in columns)


def _kind(name: str) -> str:
    return name.split(" of ", maxsplit=1)[0]


def separated(tensor: bytes, truth: Mapping[str, np.ndarray], view: str) -> set[str]:
    """Return of what FastICA finds a source: two mixed signals a row, as rows of MORE are."""
    values, found = _numbers(payload(tensor), view), set()
    for name, of in truth.items():
        if len(values) == 2 * len(of):
            sources = FastICA(random_state=0, whiten="unit-variance", max_iter=1000, tol=1e-3).fit_transform(
                values.reshape(-1, 2)
            )
            if any(is_correlated(source, of) for source in sources.T):
                found.add(_kind(name))
    return found


def is_correlated(x: np.ndarray, y: np.ndarray) -> bool:
    x, y = x.astype(float), y.astype(float)
    if not x.std() or not y.std():
        return True
    return abs(float(np.corrcoef(x, y)[0, 1])) > SIGMAS / math.sqrt(len(x))


def _numbers(content: bytes, view: str) -> np.ndarray:
    size = np.dtype(view).itemsize
    values = np.frombuffer(content[: len(content) // size * size], view)
    if view != "<f8":
        return values.view(view.replace("u", "i")).astype(np.float64)
    return np.nan_to_num(np.clip(values, -1e6, 1e6))  # random bytes are numbers of any size


@pytest.mark.filterwarnings("ignore:FastICA did not converge")
def test_what_a_coordinator_has_of_a_masked_run_is_chance(
    tmp_path: Path, datasets: list[EncryptedDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    """No test of the battery finds anything in a tensor that it sent, got or wrote; in clear, most find all of it."""
    masked, clear = (run(tmp_path / str(masking), datasets, capsys, masking=masking) for masking in (True, False))
    long = [tensor for tensor in masked.tensors if len(tensor) > 1000]
    assert len(long) == len(masked.tensors) > 12
    for tensor in (*long, masked.files["model.sealed"]):
        assert findings(tensor, masked.truth) == set()
    words = [tensor for tensor in long if not tensor.startswith(b'{"about":')]
    assert len(words) >= 8  # of each site: two updates, and two sums
    for tensor in words:
        assert separated(tensor, masked.truth, "<u8") == set()

    found: set[str] = set().union(*(findings(tensor, clear.truth) for tensor in clear.tensors))
    assert {"byte frequencies", "serial correlation", "compressible", "correlation with update"} <= found
    rows = [tensor for tensor in clear.tensors if len(tensor) == 16 * NETWORK.parameters()]
    assert "update" in set().union(*(separated(tensor, clear.truth, "<u8") for tensor in rows))


def test_nothing_else_that_it_wrote_or_printed_tells_a_weight(
    tmp_path: Path, datasets: list[EncryptedDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    """The record and the notes hold counts and names: no number of theirs is a weight, and there is no other file."""
    seen = run(tmp_path / "run", datasets, capsys, masking=True)
    assert set(seen.files) == {"federation.json", "model.sealed"}
    texts = seen.files["federation.json"].decode() + seen.printed
    weights = _texts(np.concatenate(list(seen.truth.values())))
    assert [weight for weight in weights if weight in texts] == []


def _texts(values: np.ndarray) -> Iterable[str]:
    return [text[:12] for text in map(repr, values.tolist()) if len(text) >= 16]
