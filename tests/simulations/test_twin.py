"""The plaintext twin is given what the encrypted dataset holds, padding and time gaps included."""

from pathlib import Path

import numpy as np
import pytest

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.network import Gaps, NetworkSpec, Task
from simulations.hospitals import prepare
from simulations.scenario import PhantomData, Scenario
from simulations.twin import plaintext_sites


@pytest.mark.parametrize("gaps", ["none", "public", "encrypted"])
def test_the_twin_s_inputs_are_the_decrypted_datasets(gaps: Gaps, tmp_path: Path):
    """Frames, which of them are valid, gaps, labels and splits are the dataset's, sequence by sequence."""
    data = PhantomData(patients=6, visits=3, size=16)
    scenario = Scenario("tiny", "", 2, 1, data, frames=5, size=8, gaps=gaps, dtype="float64")
    hospitals = prepare(scenario, None, tmp_path, tmp_path)
    for configured, name in zip(hospitals.sites, ("hospital-1", "hospital-2"), strict=True):
        dataset = EncryptedDataset.open(configured.dataset)
        network = NetworkSpec.of(Task.of(dataset.manifest), (3, 4))
        assert network.gaps == (gaps != "none")
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


def test_the_twin_knows_the_states_of_findings(chexpert: Path, tmp_path: Path):
    """Labels are the dataset's states, unknown ones included; coloured frames are the dataset's."""
    settings = {"hospitals": ("north", "south"), "predict": "visit", "target": "Consolidation,Pleural Effusion"}
    scenario = Scenario("tiny", "", 2, 1, frames=3, size=8, colour=True, dtype="float64", **settings)
    hospitals = prepare(scenario, chexpert, tmp_path, tmp_path)
    dataset = EncryptedDataset.open(hospitals.sites[0].dataset)
    site = plaintext_sites(hospitals, NetworkSpec.of(Task.of(dataset.manifest), (3, 4)))[0]
    everything = np.arange(len(dataset))
    np.testing.assert_array_equal(
        site.labels, encryption.decrypt_findings(hospitals.domain, dataset.labels(everything))
    )
    assert {-1, 0, 1} == set(site.labels.ravel().tolist())
    np.testing.assert_allclose(
        site.frames, encryption.decrypt(hospitals.domain, dataset.frames(everything)), atol=1e-12
    )
