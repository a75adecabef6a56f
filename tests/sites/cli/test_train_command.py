"""`fedpp-site train`: checkpoints, resuming, early stopping, and what it refuses."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SPLIT, write_dataset
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
from sites.cli.site_cli import main
from sites.cli.training_settings import TrainingSettings
from sites.vault.audit_log import AuditLog, Signer

PROGRAM = [sys.executable, "-m", "sites", "train"]
SECONDS = 120.0  # a bound on one start of the program


@pytest.fixture
def folder(tmp_path: Path, domain: KeyDomain) -> Path:
    """Return a domain folder."""
    key_store.join(tmp_path / "domain", membership(EAST, domain), cheap())
    return tmp_path / "domain"


def arguments(dataset: EncryptedDataset, folder: Path, out: Path, *more: str) -> list[str]:
    return [str(dataset.path), "--domain", str(folder), "--out", str(out), *more]


def rows(out: Path) -> dict[str, np.ndarray]:
    return EncryptedModel.load(out / "model.npz").rows


def assert_equal_models(one: Path, other: Path) -> None:
    left, right = rows(one), rows(other)
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], err_msg=name)


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
def test_a_training_that_was_killed_five_times_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: EncryptedDataset, folder: Path, tmp_path: Path
):
    """SIGKILL at five random moments; resumed, the rows are equal bit for bit, and no checkpoint is left."""
    settings = ["--epochs", "150", "--seed", "3", "--batch-size", "4", "--micro-batch", "3", "--architecture", "cnn"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", *arguments(dataset, folder, whole, *settings)]) == 0
    generator = random.Random(5)
    resume = [*PROGRAM, *arguments(dataset, folder, broken, "--resume", *settings)]
    assert all(killed_at_random(resume, broken, generator) for _ in range(5))
    assert not (broken / "model.npz").exists()
    done = subprocess.run([*resume, "--json"], cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stderr
    assert len(json.loads(done.stdout)["loss_with_decoys"]) == 150
    assert_equal_models(whole, broken)
    assert [path.name for path in broken.iterdir()] == ["model.npz"]


def test_ctrl_c_prints_the_command_that_resumes(dataset: EncryptedDataset, folder: Path, tmp_path: Path):
    """One line on stderr, status 1; the printed command ends the training with the weights of an uninterrupted one."""
    settings = ["--epochs", "150", "--seed", "3", "--batch-size", "4", "--architecture", "cnn"]
    out = tmp_path / "an out"
    with subprocess.Popen(
        [*PROGRAM, *arguments(dataset, folder, out, *settings)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        *_, line = process.stderr.readlines()
    assert first.startswith("epoch 1 of 150")
    assert process.returncode == 1
    command = f"fedpp-site train {dataset.path} --domain {folder} --out '{out}' --resume"
    assert line == f"fedpp-site train: interrupted: resume with `{command}`\n"
    assert main(shlex.split(command)[1:]) == 0
    assert main(["train", *arguments(dataset, folder, tmp_path / "whole", *settings)]) == 0
    assert_equal_models(tmp_path / "whole", out)


def test_a_resumed_training_may_have_more_epochs(
    dataset: EncryptedDataset, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """A training of 2 epochs that was stopped before its model was written resumes to 5, as one of 5 from the start."""
    given = ["--learning-rate", "0.01", "--batch-size", "3"]
    assert main(["train", *arguments(dataset, folder, tmp_path / "five", "--epochs", "5", *given)]) == 0
    stopped(dataset, folder, tmp_path / "two", monkeypatch, "--epochs", "2", *given)
    assert main(["train", *arguments(dataset, folder, tmp_path / "two", "--resume", "--epochs", "1")]) == 1
    assert "started with epochs 2, got 1: give more" in capsys.readouterr().err
    assert main(["train", *arguments(dataset, folder, tmp_path / "two", "--resume", "--epochs", "5")]) == 0
    assert_equal_models(tmp_path / "five", tmp_path / "two")


def stopped(dataset: EncryptedDataset, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Train, and stop at the moment when the model is to be written: the disk is full."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(out / "model.npz"))

    with monkeypatch.context() as patch:
        patch.setattr(EncryptedModel, "save", full)
        assert main(["train", *arguments(dataset, folder, out, *more)]) == 1
    assert [path.name for path in out.iterdir()] == ["checkpoint.sealed"]


def test_settings_that_contradict_the_checkpoint_are_refused(
    dataset: EncryptedDataset,
    folder: Path,
    domain: KeyDomain,
    plaintext: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A new start over it, other settings and another dataset each end in one line; the checkpoint stays as it is."""
    out = tmp_path / "out"
    stopped(dataset, folder, out, monkeypatch, "--epochs", "1", "--seed", "3")
    content = (out / "checkpoint.sealed").read_bytes()
    other = write_dataset(tmp_path / "other", domain, (plaintext[0] + 1, plaintext[1]))
    capsys.readouterr()
    for given, reason in (
        (arguments(dataset, folder, out), "holds an unfinished training: --resume it"),
        (arguments(dataset, folder, out, "--resume", "--seed", "4"), "started with seed 3, got 4: leave it out"),
        (arguments(dataset, folder, out, "--resume", "--voting"), "started with voting False, got True"),
        (
            arguments(dataset, folder, out, "--resume", "--learning-rate", "1"),
            "started with learning-rate 0.001, got 1",
        ),
        (arguments(other, folder, out, "--resume"), "the training started with dataset"),
        (arguments(dataset, folder, out, "--resume", "--vault", "unix:none"), "without early stopping: leave --vault"),
    ):
        assert main(["train", *given]) == 1
        error = capsys.readouterr().err
        assert reason in error
        assert len(error.strip().splitlines()) == 1
    assert (out / "checkpoint.sealed").read_bytes() == content
    at_rest = domain.at_rest_key()
    now = Checkpoint.load(out / "checkpoint.sealed", at_rest)
    older = {name: value for name, value in now.settings.items() if name != "micro_batch"}
    replace(now, settings=older).save(out / "checkpoint.sealed", at_rest)
    assert main(["train", *arguments(dataset, folder, out, "--resume")]) == 1
    assert "the checkpoint is of another version of fedpp" in capsys.readouterr().err
    damaged = bytearray(content)
    damaged[100] ^= 1
    (out / "checkpoint.sealed").write_bytes(bytes(damaged))
    assert main(["train", *arguments(dataset, folder, out, "--resume")]) == 1
    assert "is damaged, or sealed under another domain's at-rest key" in capsys.readouterr().err


def test_without_a_checkpoint_training_starts_from_the_beginning(
    dataset: EncryptedDataset, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A script may always pass --resume, and the same seed gives the same model, decoys included."""
    assert main(["train", *arguments(dataset, folder, tmp_path / "a", "--epochs", "2", "--resume")]) == 0
    assert "holds no checkpoint: training starts from the beginning" in capsys.readouterr().err
    assert main(["train", *arguments(dataset, folder, tmp_path / "b", "--epochs", "2")]) == 0
    assert_equal_models(tmp_path / "a", tmp_path / "b")
    assert main(["train", *arguments(dataset, folder, tmp_path / "a", "--resume")]) == 1
    assert "models are not overwritten" in capsys.readouterr().err


def test_files_of_a_killed_training_are_removed(
    dataset: EncryptedDataset, folder: Path, tmp_path: Path, monkeypatch, capsys
):
    """The next start removes half a model, and --resume the checkpoint of a training that has its model."""
    out = tmp_path / "out"
    stopped(dataset, folder, out, monkeypatch, "--epochs", "1")
    (out / ".model.npz.1.tmp").write_bytes(b"half")
    (out / ".profile.tmp").write_bytes(b"somebody's")
    checkpoint = (out / "checkpoint.sealed").read_bytes()
    assert main(["train", *arguments(dataset, folder, out, "--resume")]) == 0
    assert sorted(path.name for path in out.iterdir()) == [".profile.tmp", "model.npz"]
    (out / "checkpoint.sealed").write_bytes(checkpoint)
    assert main(["train", *arguments(dataset, folder, out)]) == 1
    assert (out / "checkpoint.sealed").exists()
    assert main(["train", *arguments(dataset, folder, out, "--resume")]) == 1
    assert "models are not overwritten" in capsys.readouterr().err
    assert not (out / "checkpoint.sealed").exists()


@pytest.mark.parametrize(("split", "more"), [("train", []), ("validation", ["--vault", "unix:none"])])
def test_a_split_without_sequences_is_found_before_training(
    split: str, more: list[str], domain: KeyDomain, plaintext, folder: Path, tmp_path: Path, monkeypatch, capsys
):
    """An empty split train, or validation with early stopping, is one line, and nothing is written."""
    monkeypatch.setattr("conftest.SPLIT", tuple("test" if name == split else name for name in SPLIT))
    lacking = write_dataset(tmp_path / "lacking", domain, plaintext)
    assert main(["train", *arguments(lacking, folder, tmp_path / "out", *more)]) == 1
    assert f"has no sequence in split {split}: ingest it with other shares" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_initial_weights_are_not_those_of_the_seed_alone(
    dataset: EncryptedDataset, folder: Path, domain: KeyDomain, tmp_path: Path
):
    """The seed without the key does not reveal them: a model that hardly learned has none of that seed's weights."""
    slow = arguments(dataset, folder, tmp_path / "out", "--epochs", "1", "--seed", "3", "--learning-rate", "1e-12")
    assert main(["train", *slow]) == 0
    model = EncryptedModel.load(tmp_path / "out" / "model.npz")
    started = encryption.decrypt(domain, model.rows["dense/kernel"])
    assert np.abs(started - initial_weights(model.network, 3)["dense/kernel"]).max() > 0.1
    key = domain.evaluation_key()
    own = initial_weights(model.network, key.weight_seed(3, 0))["dense/kernel"]
    np.testing.assert_allclose(started, own, atol=1e-9)


def test_early_stopping_keeps_the_best_epoch(
    dataset: EncryptedDataset, folder: Path, domain: KeyDomain, tmp_path: Path, address: str, capsys
):
    """Training stops 2 epochs after the lowest loss that the vault decrypts, with the weights of that epoch."""
    out = tmp_path / "out"
    log = AuditLog.open(tmp_path / "log", Signer.of(certified(domain, "north").identity))
    with serving(domain, dataset, address, audit=log):
        early = ["--vault", address, "--patience", "2", "--epochs", "60", "--learning-rate", "0.02", "--json"]
        assert main(["train", *arguments(dataset, folder, out, *early)]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("note: split validation has 2 patients: the vault returns their loss only if min-") == 1
    figures = json.loads(printed.out)
    losses, best = figures["validation_loss"], figures["best_epoch"]
    assert len(losses) == best + 2 < 60
    log.close()
    asked = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    scored = [(line["run"], line["round"]) for line in asked if line["method"] == "Evaluate"]
    assert scored == [("", epoch) for epoch in range(1, len(losses) + 1)]
    assert min(losses[:best]) == losses[best - 1]
    key = domain.evaluation_key()
    model = EncryptedModel.load(out / "model.npz")
    trainer = EncryptedTrainer(model.network, key.algebra(), Hyperparameters(), "float64")
    trainer.load(model.rows)
    validation = dataset.indices("validation")
    logits = encryption.decrypt(domain, trainer.logits(dataset, validation))
    labels = encryption.decrypt(domain, dataset.labels(validation)).argmax(axis=1)
    assert metrics(count(labels, softmax(logits))).loss == pytest.approx(losses[best - 1], abs=1e-8)


def test_early_stopping_needs_the_vault(
    dataset: EncryptedDataset, folder: Path, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
):
    """Patience without a vault, and a vault that is not there, are one line each."""
    given = arguments(dataset, folder, tmp_path / "out")
    assert main(["train", *given, "--patience", "2"]) == 1
    assert "--patience needs --vault" in capsys.readouterr().err
    assert main(["train", *given, "--vault", address]) == 1
    assert "no vault answers at" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
