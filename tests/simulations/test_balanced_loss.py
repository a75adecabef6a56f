"""A loss that training labels balance: masked, in clear and in plaintext the same model, on unbalanced phantoms."""

import tempfile
from pathlib import Path

import numpy as np
from global_states import flat

from fedpp.keys import encryption
from fedpp.keys.sealed_stage import SealedStage
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.certified_model import CertifiedModel
from simulations import in_process_engine, masked_start
from simulations.hospitals import Hospitals, prepare
from simulations.plaintext_reference import PlaintextReference, plaintext_sites
from simulations.scenario import PhantomData, Scenario
from simulations.simulated_federation import vaults

SCENARIO = Scenario.of(
    name="unbalanced",
    description="",
    sites=3,
    rounds=2,
    epochs=1,
    batch_size=4,
    learning_rate=0.01,
    positive_weight=0.0,
    phantom=PhantomData(patients=9, visits=2, size=16),  # of each hospital 5 patients have a growing lesion
    classes=("stable", "growing"),
    frames=2,
    size=8,
    filters=(3, 4),
    dense=5,
    architecture="cnn",
    dtype="float64",
)


def federate(scenario: Scenario, hospitals: Hospitals, out: Path, initial: str = "") -> tuple[int, ...]:
    """Run the federation into a folder, and return the training labels in its record."""
    config = scenario.run_config(hospitals.domain.card().to_json(), out).changed(initial_model=initial)
    masked_start.fix(scenario, out)
    return in_process_engine.federate(hospitals.sites, config.to_flower()).labels


def test_masked_clear_and_plaintext_runs_balance_alike(tmp_path: Path) -> None:
    """From the same weights masked and clear runs end with the same rows, and their plaintext is the reference's."""
    clear = SCENARIO.changed(secure_aggregation=False)
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        made = prepare(SCENARIO, None, tmp_path, Path(sockets))
        with vaults(made.sites, made.passphrase_file):
            labels = federate(SCENARIO, made, tmp_path / "masked")
            seed = masked_start.weight_seed(SCENARIO, made)
            certified = CertifiedModel.from_bytes((tmp_path / "masked" / "model.sealed").read_bytes())
            network = certified.contract.spec.network
            first = masked_start.initial_model(made.domain, network, "float64", seed)
            first.save(tmp_path / "first.npz")
            assert federate(clear, made, tmp_path / "clear", str(tmp_path / "first.npz")) == labels
    sites = plaintext_sites(made, network)
    counted = np.sum([np.bincount(site.labels[site.split["train"]], minlength=2) for site in sites], axis=0)
    assert labels == tuple(counted.tolist())
    assert labels[0] != labels[1]

    masked = SealedStage.unseal(made.domain.state_sealer(), [certified.sealed]).stage
    assert masked.labels == labels
    rows = EncryptedModel.load(tmp_path / "clear" / "model.npz").rows
    for name, values in masked.state.rows.items():
        np.testing.assert_array_equal(values, rows[name])

    def reference(scenario: Scenario) -> np.ndarray:
        plain = PlaintextReference(network, scenario.run)
        return np.concatenate([of.reshape(-1) for of in plain.federate(sites, plain.initial(seed))])

    found = encryption.decrypt(made.domain, flat(rows, network).reshape(-1, 2))
    np.testing.assert_allclose(found, reference(SCENARIO), rtol=0, atol=1e-9)
    assert np.abs(found - reference(SCENARIO.changed(positive_weight=1.0))).max() > 1e-5
