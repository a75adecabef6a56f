"""Attack on a whole deployment: SuperLink, SuperNodes, vaults and approved code in processes of their own."""

import tempfile
from pathlib import Path

from fedpp.config.run_config import RunConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.protocol.run_record import CLEAR
from simulations.chaos.chaos_command import TRAINING
from simulations.chaos.cluster import Settings, cluster
from simulations.hospitals import prepare
from simulations.scenario import PhantomData, Scenario

from .attack import Attack
from .scene import laboratory as of_laboratory
from .scene.laboratory import Laboratory
from .weight_attacks import runs_in_clear

ROUNDS = 1
WAIT_SECONDS = 20.0  # for sites that refuse


def model_in_clear(laboratory: Laboratory) -> float:
    """A coordinator sends deployed hospitals the requests of a run in clear, to have their model."""
    scenario = Scenario.of(
        name="attack",
        description="",
        sites=3,
        rounds=ROUNDS,
        phantom=PhantomData(patients=12, visits=2, size=32),
        frames=2,
        size=16,
        **TRAINING,
    )
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        hospitals = prepare(scenario, None, laboratory.folder, Path(sockets))
        for site in hospitals.sites:
            policy = SitePolicy.load(site.policy).changed(secure_aggregation=of_laboratory.SECURE_AGGREGATION)
            site.policy.write_text(policy.to_yaml())
        with cluster(laboratory.folder, hospitals) as running:
            run = running.run(_settings(scenario, laboratory.folder))
            run.end()
            return float((run.out / CLEAR).exists())


def _settings(scenario: Scenario, out: Path) -> Settings:
    config = RunConfig.of(**scenario.run.values(), card="", out=str(out)).to_flower()
    left_out = {"card", "out", "initial-model", "coordinator"}
    settings = {name: value for name, value in config.items() if name not in left_out}
    return {**settings, "secure-aggregation": False, "wait-seconds": WAIT_SECONDS}


DEPLOYED_ATTACKS = {"deployed-model": Attack("G2", model_in_clear, runs_in_clear)}
