"""Start of simulated masked runs: fixed in advance, and refused before any work where their sites would refuse it."""

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from coordinator.server.run_state import RunState
from fedpp.errors import ConfigError
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.initial_weights import initial_weights
from simulations import masked_start
from simulations.scenario import Scenario


def scenario(sites: int, **settings: object) -> Scenario:
    return Scenario.of(name="tiny", description="", sites=sites, rounds=1, **settings)


@pytest.mark.parametrize(
    ("sites", "settings", "text"),
    [
        (1, {}, "has one site, and nothing to add: set secure-aggregation: false"),
        (2, {}, "has two sites, which hide nothing from each other: set two-sites: accepted"),
        (2, {"two_sites": "accepted"}, ""),
        (3, {}, ""),
        (1, {"secure_aggregation": False}, ""),
        (2, {"secure_aggregation": False}, ""),
    ],
)
def test_a_run_that_its_sites_refuse_is_not_started(sites: int, settings: dict[str, object], text: str) -> None:
    """One site has nothing to add, and two hide nothing from each other, unless both accept that."""
    if text:
        with pytest.raises(ConfigError, match=text):
            masked_start.require_accepted(scenario(sites, **settings))
    else:
        masked_start.require_accepted(scenario(sites, **settings))


def test_a_seed_fixes_nonce_and_end(tmp_path: Path) -> None:
    """Runs of one seed have the same nonce and end, those of another seed another nonce; in clear it is drawn."""
    drawn = {}
    for name, settings in (
        ("one", {}),
        ("again", {}),
        ("other", {"seed": 1}),
        ("clear", {"secure_aggregation": False}),
    ):
        masked_start.fix(scenario(3, **settings), tmp_path / name)
        state = RunState(tmp_path / name)
        state.folder.mkdir(parents=True, exist_ok=True)
        drawn[name] = state.nonce("ab" * 32), state.expires(7)
    assert drawn["one"] == drawn["again"]
    assert drawn["one"][0] != drawn["other"][0]
    assert {end for name, (_, end) in drawn.items() if name != "clear"} == {masked_start.EXPIRES}
    assert drawn["clear"] == ("ab" * 32, 7)


def test_the_initial_model_is_drawn_from_the_seed(domain: KeyDomain) -> None:
    """Decrypted, its rows are the plaintext reference's initial weights, in the run's dtype."""
    model = masked_start.initial_model(domain, TINY, "float32", 5)
    assert (model.domain, model.classes) == (domain.card().fingerprint, TINY.task.classes)
    for name, values in initial_weights(TINY, 5).items():
        assert model.rows[name].dtype == np.float32
        np.testing.assert_allclose(encryption.decrypt(domain, model.rows[name]), values, atol=1e-6)
