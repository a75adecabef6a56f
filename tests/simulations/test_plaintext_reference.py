"""The plaintext reference gets the content of the encrypted dataset, padding and time gaps included."""

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Hyperparameters, Training
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.run_config import RunSettings
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.task import Gaps
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.learning.initial_weights import initial_weights
from fedpp.learning.learner import Learner
from simulations.hospitals import prepare
from simulations.plaintext_reference import PlaintextReference, PlaintextSite, inputs_of, labels_of, plaintext_sites
from simulations.scenario import PhantomData, Scenario

NAMED = {"name": "tiny", "description": "", "sites": 2, "rounds": 1}
NETWORK = TINY.changed(architecture="cnn")  # which is traced soonest


@pytest.mark.parametrize("gaps", ["none", "public", "encrypted"])
def test_inputs_are_the_decrypted_datasets(gaps: Gaps, tmp_path: Path):
    """Frames, which of them are valid, gaps, labels and splits are the dataset's, sequence by sequence."""
    data = PhantomData(patients=6, visits=3, size=16)
    scenario = Scenario.of(**NAMED, phantom=data, frames=5, size=8, gaps=gaps, dtype="float64")
    hospitals = prepare(scenario, None, tmp_path, tmp_path)
    for configured, name in zip(hospitals.sites, ("hospital-1", "hospital-2"), strict=True):
        dataset = EncryptedDataset.open(configured.dataset)
        network = ModelSpec(dataset.manifest.task, ModelChoices(filters=(3, 4)))
        assert network.task.gaps == (gaps != "none")
        (site,) = [site for site in plaintext_sites(hospitals, network) if site.name == name]
        everything = np.arange(len(dataset))
        valid = dataset.valid(everything)
        assert valid.sum(axis=1).tolist() == [3] * len(dataset), "every phantom's three visits, and two of padding"
        np.testing.assert_array_equal(site.valid, valid)
        decrypted = encryption.decrypt(hospitals.domain, dataset.frames(everything))
        np.testing.assert_allclose(site.frames, decrypted, atol=1e-12)
        one_hot = encryption.decrypt(hospitals.domain, dataset.labels(everything))
        np.testing.assert_array_equal(site.labels, one_hot.argmax(axis=1))
        for split, positions in site.split.items():
            np.testing.assert_array_equal(positions, dataset.indices(split))
        if gaps == "none":
            assert site.gaps is None
            continue
        rows = dataset.gaps(everything)
        times = rows if gaps == "public" else encryption.decrypt(hospitals.domain, rows)
        assert site.gaps is not None
        np.testing.assert_allclose(site.gaps, times, atol=1e-12)
        assert (site.gaps[:, 1:3] > 0).all()
        assert not site.gaps[:, [0, 3, 4]].any(), "no time before the first frame, and none in padding"


def test_labels_are_the_states_of_findings(chexpert: Path, tmp_path: Path):
    """Labels are the dataset's states, unknown ones included; coloured frames are the dataset's."""
    settings = {"hospitals": ("north", "south"), "predict": "visit", "target": "Consolidation,Pleural Effusion"}
    scenario = Scenario.of(**NAMED, frames=3, size=8, colour=True, dtype="float64", **settings)
    hospitals = prepare(scenario, chexpert, tmp_path, tmp_path)
    dataset = EncryptedDataset.open(hospitals.sites[0].dataset)
    site = plaintext_sites(hospitals, ModelSpec(dataset.manifest.task, ModelChoices(filters=(3, 4))))[0]
    everything = np.arange(len(dataset))
    np.testing.assert_array_equal(
        site.labels, encryption.decrypt_findings(hospitals.domain, dataset.labels(everything))
    )
    assert {-1, 0, 1} == set(site.labels.ravel().tolist())
    np.testing.assert_allclose(
        site.frames, encryption.decrypt(hospitals.domain, dataset.frames(everything)), atol=1e-12
    )


def drawn_site(seed: int, count: int) -> PlaintextSite:
    generator = np.random.default_rng(seed)
    frames, labels = generator.normal(size=(count, 2, 8, 8, 1)), generator.integers(2, size=count)
    split = {"train": np.arange(count - 1), "validation": np.array([count - 1]), "test": np.array([], np.int64)}
    return PlaintextSite(str(seed), frames, np.ones((count, 2), np.bool_), None, labels, split)


def test_a_masked_run_lowers_the_weight_of_the_largest_site():
    """Of three sites none weighs more than two thirds of all; in clear each weighs its training sequences."""
    sites, drawn = [drawn_site(1, 3), drawn_site(2, 4), drawn_site(3, 21)], list(initial_weights(NETWORK, 1).values())
    found = {}
    for masked in (True, False):
        training = Training(1, Hyperparameters(learning_rate=1e-2, batch_size=4), 7, "float64")
        run = RunSettings(sites=3, rounds=1, training=training, secure_aggregation=masked)
        found[masked] = PlaintextReference(NETWORK, run).federate(sites, drawn)
    reference = PlaintextReference(NETWORK, run)
    trained = [reference._train(site, drawn, 1) for site in sites]
    for masked, weights in ((True, (2, 3, 10)), (False, (2, 3, 20))):
        for before, after, *of_sites in zip(drawn, found[masked], *trained, strict=True):
            expected = before + sum(k * (own - before) for k, own in zip(weights, of_sites, strict=True)) / sum(weights)
            np.testing.assert_allclose(after, expected, rtol=0, atol=1e-12)


def step_by_hand(name: str, mean: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the step of a weight and its new moments."""
    if name == "fedavgm":
        first = 0.8 * first + mean
        return 0.5 * first, first, second
    if name == "fedyogi":
        first = 0.9 * first + (1 - 0.9) * mean
        second = second - (1 - 0.99) * mean**2 * np.sign(second - mean**2)
        return 0.01 * first / (np.sqrt(second) + 1e-3), first, second
    return mean, first, second


@pytest.mark.parametrize(
    "optimizer",
    [
        ServerOptimizerConfig(),
        ServerOptimizerConfig("fedavgm", 0.5, momentum=0.8),
        ServerOptimizerConfig("fedyogi", 0.01),
    ],
)
def test_rounds_take_the_server_s_step(optimizer: ServerOptimizerConfig):
    """Three rounds of two sites equal a loop by hand: train, average the changes, apply the optimizer's formula."""
    hyperparameters = Hyperparameters(learning_rate=1e-2, batch_size=4)
    training = Training(2, hyperparameters, 7, "float64")
    run = RunSettings(sites=2, rounds=3, training=training, server_optimizer=optimizer)
    sites, examples = [drawn_site(1, 6), drawn_site(2, 9)], (5, 8)
    drawn = list(initial_weights(NETWORK, 1).values())
    found = PlaintextReference(NETWORK, run).federate(sites, drawn)
    learner = Learner(NETWORK, Algebra.plaintext(), hyperparameters, "float64")
    weights, first, second = drawn, [0.0 * w for w in drawn], [0.0 * w for w in drawn]
    for number in (1, 2, 3):
        changes = []
        for site in sites:
            learner.model.set_weights(weights)
            learner.model.optimizer.restart()
            labels = labels_of(site, NETWORK, "float64")
            learner.fit(inputs_of(site, "float64"), labels, site.split["train"], epochs=2, seed=(7, number))
            changes.append([w - w0 for w, w0 in zip(learner.model.get_weights(), weights, strict=True)])
        for i, (one, other) in enumerate(zip(*changes, strict=True)):
            mean = (examples[0] * one + examples[1] * other) / 13
            taken, first[i], second[i] = step_by_hand(optimizer.name, mean, first[i], second[i])
            weights[i] = weights[i] + taken
    for one, expected in zip(found, weights, strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-9)
