"""`fedpp-site train`: checkpoints, resuming, early stopping, and what it refuses."""

import fcntl
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SPLIT, write_dataset
from hospital import error_of, site
from members import EAST, cheap, membership
from vaults import serving

from fedpp.config.hyperparameters import Hyperparameters, Training
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ModelError
from fedpp.keys import encryption, key_store
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.checkpoint import Checkpoint
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import initial_weights
from fedpp.learning.metrics import count, metrics, softmax
from fedpp.learning.model_file import EncryptedModel
from simulations.benchmarks.bench_vault import certified
from sites.cli.training_settings import TrainingSettings
from sites.vault.audit.audit_log import AuditLog, Signer

SECONDS = 120.0  # a bound on one start of the program
Plaintext = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trainer:
    """One site's dataset and domain folder, and the folder for the models that it trains."""

    dataset: EncryptedDataset
    domain: Path
    folder: Path

    def given(self, out: str, *more: str) -> tuple[object, ...]:
        """Return the arguments of a training, of the network that is the quickest unless `more` names another."""
        names = (self.dataset.path, "--domain", self.domain, "--out", self.folder / out)
        return "train", *names, "--architecture", "cnn", *more

    def program(self, out: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "sites", *map(str, self.given(out, *more))]

    def train(self, out: str, *more: str) -> "subprocess.CompletedProcess[str]":
        return site(*self.given(out, *more))

    def refused(self, out: str, *more: str) -> str:
        return error_of(*self.given(out, *more))

    def stopped(self, out: str, *more: str) -> Path:
        """Train, and stop at the moment when the model is to be written: the disk is full. Return the checkpoint."""

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", str(self.folder / out / "model.npz"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EncryptedModel, "save", full)
            site(*self.given(out, *more), check=1)
        assert [path.name for path in (self.folder / out).iterdir()] == ["checkpoint.sealed"]
        return self.folder / out / "checkpoint.sealed"

    def assert_equal_models(self, one: str, other: str) -> None:
        left, right = (EncryptedModel.load(self.folder / out / "model.npz").rows for out in (one, other))
        assert left.keys() == right.keys()
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name], err_msg=name)


@pytest.fixture
def here(dataset: EncryptedDataset, tmp_path: Path, domain: KeyDomain) -> Trainer:
    """Return a site's trainer."""
    key_store.join(tmp_path / "domain", membership(EAST, domain), cheap())
    return Trainer(dataset, tmp_path / "domain", tmp_path)


def killed_at_random(command: list[str], out: Path, generator: random.Random) -> bool:
    """Start a training and kill it some time after its next checkpoint; return whether it was still running."""
    checkpoint = out / "checkpoint.sealed"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
            time.sleep(generator.uniform(0.0, 0.2))
            break
        time.sleep(0.002)
    running = process.poll() is None
    process.kill()
    process.wait()
    return running


@pytest.mark.slow
def test_a_training_that_was_killed_five_times_ends_with_the_weights_of_an_uninterrupted_one(here: Trainer):
    """SIGKILL at five random moments; resumed, the rows are equal bit for bit, and no checkpoint is left."""
    settings = ("--epochs", "150", "--seed", "3", "--batch-size", "4", "--micro-batch", "3")
    here.train("whole", *settings)
    generator, broken = random.Random(5), here.folder / "broken"
    resume = here.program("broken", "--resume", *settings)
    assert all(killed_at_random(resume, broken, generator) for _ in range(5))
    assert not (broken / "model.npz").exists()
    done = subprocess.run([*resume, "--json"], cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stderr
    assert len(json.loads(done.stdout)["loss_with_decoys"]) == 150
    here.assert_equal_models("whole", "broken")
    assert [path.name for path in broken.iterdir()] == ["model.npz"]


def unread(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.usefixtures("eager")
def test_ctrl_c_prints_the_command_that_resumes(here: Trainer):
    """One line on stderr, status 1; the printed command, with its settings from the checkpoint, ends the training."""
    reading, writing = os.pipe()
    filled = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096) - 100  # with room for the lines of two epochs
    os.write(writing, b" " * (filled - 1) + b"\n")
    with subprocess.Popen(here.program("an out", "--epochs", "9", "--seed", "3"), cwd=ROOT, stderr=writing) as process:
        os.close(writing)
        deadline = time.monotonic() + SECONDS
        while unread(reading) == filled and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        with os.fdopen(reading) as stderr:
            _, first, *_, line = stderr.read().splitlines()
    assert first.startswith("epoch 1 of 9")
    assert process.returncode == 1
    names = f"{here.dataset.path} --domain {here.domain} --out '{here.folder / 'an out'}'"
    command = f"fedpp-site train {names} --resume"
    assert line == f"fedpp-site train: interrupted: resume with `{command}`"
    resumed = site(*shlex.split(command)[1:], "--json")
    assert "resuming after epoch" in resumed.stderr
    assert len(json.loads(resumed.stdout)["loss_with_decoys"]) == 9
    assert [path.name for path in (here.folder / "an out").iterdir()] == ["model.npz"]


@pytest.mark.usefixtures("eager")
def test_a_resumed_training_may_have_more_epochs(here: Trainer):
    """A training of 2 epochs that was stopped before its model was written resumes to 4, as one of 4 from the start."""
    given = ("--learning-rate", "0.01", "--batch-size", "3")
    here.train("four", "--epochs", "4", *given)
    here.stopped("two", "--epochs", "2", *given)
    assert "started with epochs 2, got 1: give more" in here.refused("two", "--resume", "--epochs", "1")
    here.train("two", "--resume", "--epochs", "4")  # the other settings are the checkpoint's
    here.assert_equal_models("four", "two")


@pytest.mark.usefixtures("eager")
def test_settings_that_contradict_the_checkpoint_are_refused(here: Trainer, domain: KeyDomain, plaintext: Plaintext):
    """A new start over it, other settings and another dataset each end in one line; the checkpoint stays as it is."""
    path = here.stopped("out", "--epochs", "1", "--seed", "3")
    content = path.read_bytes()
    other = replace(here, dataset=write_dataset(here.folder / "other", domain, (plaintext[0] + 1, plaintext[1])))
    for trainer, given, reason in (
        (here, (), "holds an unfinished training: --resume it"),
        (here, ("--resume", "--seed", "4"), "started with seed 3, got 4: leave it out"),
        (here, ("--resume", "--voting"), "started with voting False, got True"),
        (here, ("--resume", "--learning-rate", "1"), "started with learning-rate 0.001, got 1"),
        (other, ("--resume",), "the training started with dataset"),
        (here, ("--resume", "--vault", "unix:none"), "without early stopping: leave --vault"),
    ):
        assert reason in trainer.refused("out", *given)
    assert path.read_bytes() == content
    at_rest = domain.at_rest_key()
    now = Checkpoint.load(path, at_rest)
    older = {name: value for name, value in now.settings.items() if name != "micro_batch"}
    replace(now, settings=older).save(path, at_rest)
    assert "the checkpoint is of another version of fedpp" in here.refused("out", "--resume")
    damaged = bytearray(content)
    damaged[100] ^= 1
    path.write_bytes(bytes(damaged))
    assert "is damaged, or sealed under another domain's at-rest key" in here.refused("out", "--resume")


@pytest.mark.usefixtures("eager")
def test_without_a_checkpoint_training_starts_from_the_beginning(here: Trainer):
    """A script may always pass --resume, and the same seed gives the same model, decoys included."""
    begun = here.train("a", "--epochs", "2", "--resume")
    assert "holds no checkpoint: training starts from the beginning" in begun.stderr
    here.train("b", "--epochs", "2")
    here.assert_equal_models("a", "b")
    assert "models are not overwritten" in here.refused("a", "--resume")


@pytest.mark.usefixtures("eager")
def test_files_of_a_killed_training_are_removed(here: Trainer):
    """The next start removes half a model, and --resume the checkpoint of a training that has its model."""
    path = here.stopped("out", "--epochs", "1")
    path.with_name(".model.npz.1.tmp").write_bytes(b"half")
    path.with_name(".profile.tmp").write_bytes(b"somebody's")
    checkpoint = path.read_bytes()
    here.train("out", "--resume")
    assert sorted(file.name for file in path.parent.iterdir()) == [".profile.tmp", "model.npz"]
    path.write_bytes(checkpoint)
    here.refused("out")
    assert path.exists()
    assert "models are not overwritten" in here.refused("out", "--resume")
    assert not path.exists()


@pytest.mark.parametrize(("split", "more"), [("train", ()), ("validation", ("--vault", "unix:none"))])
def test_a_split_without_sequences_is_found_before_training(
    here: Trainer, split: str, more: tuple[str, ...], domain: KeyDomain, plaintext: Plaintext, monkeypatch
):
    """An empty split train, or validation with early stopping, is one line, and nothing is written."""
    # Several modules are called conftest: this one is where `write_dataset` looks.
    splits = tuple("test" if name == split else name for name in SPLIT)
    monkeypatch.setitem(write_dataset.__globals__, "SPLIT", splits)
    lacking = replace(here, dataset=write_dataset(here.folder / "lacking", domain, plaintext))
    assert f"has no sequence in split {split}: ingest it with other shares" in lacking.refused("out", *more)
    assert not (here.folder / "out").exists()


@pytest.mark.usefixtures("eager")
def test_initial_weights_are_not_those_of_the_seed_alone(here: Trainer, domain: KeyDomain):
    """The seed without the key does not reveal them: a model that hardly learned has none of that seed's weights."""
    here.train("out", "--epochs", "1", "--seed", "3", "--learning-rate", "1e-12")
    model = EncryptedModel.load(here.folder / "out" / "model.npz")
    started = encryption.decrypt(domain, model.rows["dense/kernel"])
    assert np.abs(started - initial_weights(model.network, 3)["dense/kernel"]).max() > 0.1
    key = domain.evaluation_key()
    own = initial_weights(model.network, key.weight_seed(3, 0))["dense/kernel"]
    np.testing.assert_allclose(started, own, atol=1e-9)


@pytest.mark.usefixtures("eager")
def test_early_stopping_keeps_the_best_epoch(here: Trainer, domain: KeyDomain, address: str):
    """Training stops 2 epochs after the lowest loss that the vault decrypts, with the weights of that epoch."""
    dataset, path = here.dataset, here.folder / "log"
    log = AuditLog.open(path, Signer.of(certified(domain, "north").identity))
    with serving(domain, dataset, address, audit=log):
        early = ("--vault", address, "--patience", "2", "--epochs", "60", "--learning-rate", "0.02", "--json")
        done = here.train("out", *early)
    assert done.stderr.count("note: split validation has 2 patients: the vault returns their loss only if min-") == 1
    figures = json.loads(done.stdout)
    losses, best = figures["validation_loss"], figures["best_epoch"]
    assert len(losses) == best + 2 < 60
    log.close()
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    evaluated = [(line["run"], line["round"]) for line in calls if line["method"] == "Evaluate"]
    assert evaluated == [("", epoch) for epoch in range(1, len(losses) + 1)]
    assert min(losses[:best]) == losses[best - 1]
    model = EncryptedModel.load(here.folder / "out" / "model.npz")
    trainer = EncryptedTrainer(model.network, domain.evaluation_key().algebra(), Hyperparameters(), "float64")
    trainer.load(model.rows)
    validation = dataset.indices("validation")
    logits = encryption.decrypt(domain, trainer.logits(dataset, validation))
    labels = encryption.decrypt(domain, dataset.labels(validation)).argmax(axis=1)
    assert metrics(count(labels, softmax(logits))).loss == pytest.approx(losses[best - 1], abs=1e-8)


def test_what_others_decide_needs_them(here: Trainer, address: str):
    """Patience without a vault, a vault that is not there, and labels of other sites are one line each."""
    assert "positive-weight 0 is of a federation" in here.refused("out", "--positive-weight", "0")
    assert "--patience needs --vault" in here.refused("out", "--patience", "2")
    assert "no vault answers at" in here.refused("out", "--vault", address)
    assert not (here.folder / "out").exists()


def test_a_checkpoint_from_before_the_pull_has_none():
    """Settings without `proximal` are read as 0, and written with it."""
    training = Training(10, Hyperparameters(learning_rate=0.1))
    settings = TrainingSettings("d" * 64, "e" * 64, training)
    older = {name: value for name, value in settings.to_mapping().items() if name != "proximal"}
    assert TrainingSettings.of_checkpoint(older) == settings
    pulled = settings.changed(proximal=0.1)
    assert TrainingSettings.of_checkpoint(pulled.to_mapping()) == pulled
    with pytest.raises(ModelError, match="the checkpoint is of another version of fedpp"):
        TrainingSettings.of_checkpoint({**older, "unheard": 1})
