"""Start of a simulated masked run: its nonce and end, fixed in advance, and the seed of its initial weights.

A simulation owns the domain and all members, so it knows what no single party of a real federation does.
"""

from hashlib import sha256
from pathlib import Path

from coordinator.server.run_state import RunState
from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import ConfigError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_statements import SignedStatement
from fedpp.vault_api.vault_client import VaultClient

from .hospitals import Hospitals
from .scenario import Scenario

EXPIRES = 4_102_444_800  # in 2100: the contract's digest decides the weights, so it must not depend on the day


def require_accepted(scenario: Scenario) -> None:
    """Raise `ConfigError` for a masked run that its sites refuse: of one site, or of two that do not accept it."""
    if not scenario.run.secure_aggregation or scenario.run.sites > 2:
        return
    if scenario.run.sites == 1:
        raise ConfigError(f"scenario {scenario.name} has one site, and nothing to add: set secure-aggregation: false")
    if scenario.two_sites != "accepted":
        raise ConfigError(
            f"scenario {scenario.name} has two sites, which hide nothing from each other: set two-sites: accepted, or "
            "secure-aggregation: false"
        )


def fix(scenario: Scenario, out: Path) -> None:
    """Fix nonce and end of the run with these results, so that it can be repeated to the same weights."""
    if scenario.run.secure_aggregation:
        RunState(out).fix(_nonce(scenario), EXPIRES)


def weight_seed(scenario: Scenario, hospitals: Hospitals) -> int:
    """Return the seed of the run's initial weights; of a masked run, from the coins that a vault knows."""
    if not scenario.run.secure_aggregation:
        return hospitals.domain.initial_seed(scenario.run.training.seed)
    return run_seed(hospitals.domain, _nonce(scenario), hospitals.sites[0].vault)


def run_seed(domain: KeyDomain, nonce: str, address: str) -> int:
    """Return the seed of the initial weights of a masked run, from the coins that the vault at this address knows."""
    with VaultClient(address) as vault:
        signed = [SignedStatement.from_json(text).statement for text in vault.where(nonce)[0]]
    coins = {statement.site: statement.facts["coin"] for statement in signed if statement.purpose == "coin"}
    return domain.run_seed(signed[0].contract, [coins[site] for site in sorted(coins)])


def initial_model(domain: KeyDomain, network: ModelSpec, dtype: Dtype, seed: int) -> EncryptedModel:
    """Return the model of these initial weights, for a run in clear that starts where a masked one did."""
    rows = encrypted_initial_weights(network, seed, domain.computing_key())
    cast = {name: values.astype(dtype) for name, values in rows.items()}
    return EncryptedModel(network, domain.card().fingerprint, network.task.classes, cast)


def _nonce(scenario: Scenario) -> str:
    return sha256(f"simulated run of seed {scenario.run.training.seed}".encode()).hexdigest()
