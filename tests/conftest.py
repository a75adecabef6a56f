"""Small real things that many tests need: a key domain, an encrypted dataset, the real data's folder."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from fedpp.cipher.domain_card import DomainCard
from fedpp.cli import load_tensorflow
from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.task import Gaps, Task
from fedpp.dataset.at_rest import AtRestKey
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.dataset_writer import DatasetWriter
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.imaging.sequence import ImageSequence
from fedpp.keys import encryption
from fedpp.keys.frame_cipher import DEFAULT_PATCH, FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.processes import QUIET_FLOWER

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FEDPP_DATA", ROOT.parent / "shared" / "data"))
os.environ |= QUIET_FLOWER
# A busy machine must not fail a property, so there is no deadline. `make test-all` takes more examples.
settings.register_profile("short", deadline=None, max_examples=25)
settings.register_profile("long", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

TINY = ModelSpec(Task(2, 8, 8, 1, ("no", "yes")), ModelChoices(filters=(3, 4), dense=5, lstm=4))
FINDINGS = ("Edema", "Fracture", "Effusion")
MAX_WORKERS = 4  # of a gigabyte each, and what they start
LONGEST = (
    "test_deployment.py",
    "test_tutorials.py",
    "simulations/chaos/test_chaos_cases.py",
    "simulations/attacks/test_attacks.py",
    "sites/node/test_join.py",
    "simulations/symbolic/test_exhaustive_search.py",
    "sites/client/test_local_round.py",
    "simulations/paper/test_paper.py",
    "simulations/test_simulation.py",
    "sites/cli/test_train_command.py",
    "sites/cli/test_site_cli.py",
    "simulations/benchmarks/test_bench_step.py",
    "simulations/benchmarks/test_bench_rounds.py",
    "learning/test_encrypted_training.py",
    "learning/test_learner.py",
    "learning/test_proximal.py",
    "test_ultrasound_masking.py",
    "sites/vault/masked_runs/test_run_machine.py",
    "coordinator/operator/test_supervision.py",
    "sites/vault/masked_runs/test_run_schedules.py",
    "sites/cli/test_data_commands.py",
    "simulations/benchmarks/test_bench_drift.py",
    "sites/client/test_client_app.py",
)
SPLIT = ("train",) * 6 + ("validation",) * 2 + ("test",) * 3


def pytest_configure() -> None:
    """Take back an ignored SIGINT, which a shell gives its background jobs: programs under test inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use a worker more than cores, as many tests wait; run what is named on the command line in this process."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(len(os.sched_getaffinity(0)) + 1, MAX_WORKERS) if whole else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left alone with one of them in the end."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def determinism_ends() -> Iterator[None]:
    """Take back what a training in this process switched on for good: with it, no batch is read ahead."""
    yield
    if (config := sys.modules.get("tensorflow.python.framework.config")) is not None:
        config.disable_op_determinism()


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Run TensorFlow's functions eagerly: one step of a network takes less time than its tracing."""
    load_tensorflow()
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def domain() -> KeyDomain:
    """Return a key domain that is the same in every run."""
    return KeyDomain.of_secret(bytes(range(32)), n=2)


@pytest.fixture(scope="session")
def plaintext() -> tuple[np.ndarray, np.ndarray]:
    """Return frames `[11, 2, 8, 8, 1]` and labels `[11]` of the tiny dataset."""
    generator = np.random.default_rng(7)
    return generator.normal(size=(11, 2, 8, 8, 1)), np.arange(11) % 2


def loaded(sequences: list[ImageSequence]) -> list[ImageSequence]:
    """Read every frame, which a reader leaves for later, and return the sequences."""
    for sequence in sequences:
        assert len(list(sequence.frames)) == len(sequence.frames)
    return sequences


def new_dataset(
    path: Path,
    card: DomainCard,
    *,
    dtype: Dtype,
    gaps: Gaps = "none",
    at_rest: AtRestKey | None = None,
    **task: Any,
) -> DatasetWriter:
    """Return a writer of a dataset of the task with these facts."""
    facts = Task(**task, gaps=gaps != "none")
    return DatasetWriter(path, card, facts, dtype, encrypted_gaps=gaps == "encrypted", at_rest=at_rest)


def write_dataset(
    path: Path,
    domain: KeyDomain,
    plaintext: tuple[np.ndarray, np.ndarray],
    *,
    lengths: Sequence[int] = (2,) * len(SPLIT),
    gaps: Gaps = "none",
    times: np.ndarray | None = None,
    sealed: bool = False,
) -> EncryptedDataset:
    """Write the tiny dataset, in float64, under a domain: the first `lengths` of the frames and `times` `[11, 2]`.

    Labels are class numbers `[11]`, or the states `[11, 3]` of three findings. In the frame form it is of patches.
    """
    frames, labels = plaintext
    several, at_rest = labels.ndim == 2, domain.at_rest_key() if sealed else None
    classes = FINDINGS if several else ("no", "yes")
    patch = DEFAULT_PATCH if domain.scheme == "more-frame" else 0
    mixed = FrameCipher(domain, "float64", "patches", patch) if patch else None
    cipher = mixed or encryption.SequenceCipher(domain, "float64")
    shape = {"frames": 2, "height": 8, "width": 8, "channels": 1, "patch": patch}
    with new_dataset(
        path, domain.card(), dtype="float64", **shape, classes=classes, multi_label=several, gaps=gaps, at_rest=at_rest
    ) as writer:
        for i, (split, length) in enumerate(zip(SPLIT, lengths, strict=True)):
            name = f"{i:032x}"
            record = SequenceRecord(name, f"{100 + i:032x}", length, split)
            kept = None if times is None else times[i, :length]
            rows = cipher.gaps(name, kept) if kept is not None and gaps == "encrypted" else kept
            label = cipher.findings(name, labels[i].tolist()) if several else cipher.label(name, labels[i], 2)
            writer.add(record, cipher.frames(name, frames[i, :length]), label, rows)
    return EncryptedDataset.open(path, at_rest)


@pytest.fixture
def dataset(tmp_path: Path, domain: KeyDomain, plaintext: tuple[np.ndarray, np.ndarray]) -> EncryptedDataset:
    """Return a tiny encrypted dataset on disk."""
    return write_dataset(tmp_path / "dataset", domain, plaintext)


@pytest.fixture
def address() -> Iterator[str]:
    """Return a vault's address in a folder that is not there yet; pytest's own folders are too deep for a socket."""
    with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
        yield f"unix:{folder}/run/vault.sock"
