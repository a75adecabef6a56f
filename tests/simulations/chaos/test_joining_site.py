"""A whole deployment whose masked run takes in a fourth hospital, and one whose coordinator loses its folder."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpp.config.run_config import RunConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.protocol.run_record import SEALED
from fedpp.reporting.report import load_report
from simulations.chaos.chaos_command import TRAINING
from simulations.chaos.cluster import Cluster, Run, Settings, call, cluster
from simulations.hospitals import prepare
from simulations.scenario import PhantomData, Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def deployment() -> Iterator[tuple[Cluster, Settings]]:
    """Run four hospitals, whose policies allow a change, of which the last has not joined; runs are of three sites."""
    phantom = PhantomData(patients=12, visits=2, size=32)
    scenario = Scenario.of(
        name="joining", description="", sites=4, rounds=2, phantom=phantom, layout="auto", frames=2, size=16, **TRAINING
    )
    config = RunConfig.of(**scenario.run.changed(seed=3, sites=3).values(), card="", out="").to_flower()
    settings = {
        name: value for name, value in config.items() if name not in {"card", "coordinator", "out", "initial-model"}
    }
    with tempfile.TemporaryDirectory(prefix="fedpp-") as name:
        folder = Path(name)
        hospitals = prepare(scenario, None, folder, folder)
        for site in hospitals.sites:
            policy = SitePolicy.load(site.policy)
            site.policy.write_text(policy.changed(limits=policy.limits.changed(max_changes=1)).to_yaml())
        with cluster(folder, hospitals) as running:
            running.programs[f"node {running.names[-1]}"].end()
            yield running, settings


def stopped(running: Cluster, settings: Settings) -> Run:
    """Return a run that its operator stopped in its second round."""
    run = running.run(settings)
    run.wait_until("training", 2)
    call(["coordinator", "stop", "--state", str(running.state), "--out", str(run.out)])
    run.end()
    return run


def test_a_fourth_hospital_joins_a_run(deployment: tuple[Cluster, Settings]) -> None:
    """Its staff endorses the state that `run` names; the run ends with four sites, and its report counts the change."""
    running, settings = deployment
    new = running.names[-1]
    run = stopped(running, settings)
    running.connect_node(new)
    resumed = running.run(settings, out=run.out, resume=True, more=("--with", new))
    resumed.program.wait_for("endorse --state ")
    (state,) = re.findall(r"endorse --state ([0-9a-f]{64})", resumed.program.log_text())
    keys = running.site(new).evaluation_key.parents[1]
    secret = ("--domain", str(keys), "--passphrase-file", str(running.hospitals.passphrase_file))
    call(["sites", "endorse", "--state", state, *secret])
    record = resumed.completed()
    assert (record.certified, record.changes) == (running.names, 1)
    call(["coordinator", "report", str(run.out)])
    lines = load_report(run.out / "report.json").privacy.does_not_protect
    assert any(line.startswith("HOSPITALS LEFT OR JOINED DURING THE RUN: 1 such") for line in lines)
    shown = call(["sites", "pull", str(run.out / SEALED), *secret, "--out", str(running.folder / "model.npz")])
    assert all(name in shown for name in running.names)


def test_a_lost_folder_is_rebuilt(deployment: tuple[Cluster, Settings]) -> None:
    """The nonce that `run` printed and the settings of the start are enough; nobody trains a round again."""
    running, settings = deployment
    run = stopped(running, settings)
    (nonce,) = set(re.findall(r"--nonce ([0-9a-f]{64})", run.program.log_text()))
    shutil.rmtree(run.out)
    card = ("--domain", str(running.folder / "domain.card"), "--sites", "3")
    rebuilt = running.run(settings, out=run.out, resume=True, more=("--nonce", nonce, *card))
    record = rebuilt.completed()
    assert "rebuilt from 1 contracts and " in rebuilt.program.log_text()
    assert (len(record.certified), [of.number for of in record.rounds]) == (3, [1, 2])
