"""Runner of scenarios: hospitals, vaults, the federation, its baselines, and the report."""

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from coordinator.operator.report_command import report_of
from fedpp.cli import load_tensorflow
from fedpp.config.run_config import RunConfig, SiteConfig
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError
from fedpp.protocol.run_record import FederationRecord
from fedpp.reporting.report import Report, SharedPatients, write_report
from sites.cli.pull_command import opened

from .comparison import Comparison, shared, trained_and_tested
from .hospitals import Hospitals, prepare
from .scenario import Scenario
from .simulated_federation import federate, vaults

_VERSIONS = ("fedpp", "flwr", "tensorflow", "keras", "numpy", "ray")
_OURS = (
    "domain",
    "keys",
    "passphrase",
    "policies",
    "raw",
    "sites",
    "trainers",
    "federation",
    "report.json",
    "report.html",
)
_MARK = ".fedpp-run"  # marks the folder of a run, which may be overwritten


def run(scenario: Scenario, data: Path | None, out: Path, *, overwrite: bool) -> Report:
    """Run a scenario into the folder `out`, and write `report.json` and `report.html` there."""
    scenario.source(data)
    config = RunConfig.from_mapping(_settings(scenario, card="", sites=scenario.sites, out=out))
    if config.strategy:
        from coordinator.server.chosen_strategy import ChosenStrategy

        ChosenStrategy.of(config, scenario.scheme)
    _clear(out, data, overwrite=overwrite)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        _note(f"{scenario.name}: reading and encrypting (the keys derive from the seed and protect nothing)")
        hospitals = prepare(scenario, data, out, Path(sockets))
        prepared = time.monotonic()
        _note(f"{scenario.name}: {scenario.rounds} rounds on ciphertext, {len(hospitals.sites)} sites")
        with vaults(hospitals.sites, hospitals.passphrase_file):
            record = _federate(scenario, hospitals.sites, run_config(scenario, hospitals, out / "federation"))
        if scenario.secure_aggregation:
            model = opened(out / "federation" / "model.sealed", hospitals.domain).model()
            model.save(out / "federation" / "model.npz")
    federated = time.monotonic()
    compared = _compared(scenario, hospitals, record, out / "federation" / "model.npz")
    timing = {
        "prepare": prepared - started,
        "federate": federated - prepared,
        "compare": time.monotonic() - federated,
        "total": time.monotonic() - started,
    }
    report = _report(scenario, hospitals, record, compared, timing)
    write_report(out, report)
    return report


def _federate(
    scenario: Scenario, sites: Sequence[SiteConfig], configuration: Mapping[str, str | int | float]
) -> FederationRecord:
    if scenario.engine == "in-process":
        from .in_process_engine import federate as federate_in_process

        return federate_in_process(sites, configuration)
    return federate(sites, configuration)


def _clear(out: Path, data: Path | None, *, overwrite: bool) -> None:
    """Create the folder of a run; `overwrite` deletes an earlier run in it, and nothing else."""
    if data is not None and data.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"the data {data} are inside the run's folder {out}: choose another --out")
    present = [name for name in _OURS if (out / name).exists()]
    if present and not (overwrite and (out / _MARK).exists()):
        advice = "choose another --out, or --overwrite" if (out / _MARK).exists() else "choose another --out"
        raise ConfigError(f"{out} holds {', '.join(present)} already: {advice}")
    for name in present:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()


def run_config(scenario: Scenario, hospitals: Hospitals, out: Path) -> dict[str, str | int | float]:
    """Return the coordinator's run configuration for a scenario."""
    return _settings(scenario, card=hospitals.domain.card().to_json(), sites=len(hospitals.sites), out=out)


def _settings(scenario: Scenario, *, card: str, sites: int, out: Path) -> dict[str, str | int | float]:
    return {
        "card": card,
        "out": str(out.resolve()),
        "initial-model": "",
        "sites": sites,
        "quorum": sites,
        "rounds": scenario.rounds,
        "epochs": scenario.epochs,
        **{name.replace("_", "-"): value for name, value in scenario.hyperparameters().to_mapping().items()},
        "server-optimizer": scenario.server_optimizer,
        "server-learning-rate": scenario.server_learning_rate,
        "server-momentum": scenario.server_momentum,
        "server-beta-2": scenario.server_beta_2,
        "server-tau": scenario.server_tau,
        "strategy": scenario.strategy,
        "strategy-settings": scenario.strategy_settings,
        "seed": scenario.seed,
        "dtype": scenario.dtype,
        "architecture": scenario.architecture,
        "voting": scenario.voting,
        "filters": ",".join(map(str, scenario.filters)),
        "kernel": 3,
        "dense": scenario.dense,
        "lstm": scenario.lstm,
        "secure-aggregation": scenario.secure_aggregation,
        "max-examples": 0,
        "max-update-value": 8.0,
        "max-update-norm": 10.0,
        "max-loss-increase": 1.0,
        "local-baseline": False,  # the baselines are trained in plaintext
        "retries": 2,
        "wait-seconds": 600.0,  # all nodes are there from the start, but a busy machine is slow
        "round-seconds": 3600.0,
    }


def _compared(scenario: Scenario, hospitals: Hospitals, record: FederationRecord, model_file: Path) -> Comparison:
    if scenario.plaintext_federated or scenario.plaintext_central or scenario.local_baseline:
        load_tensorflow()
        from .baselines import compare

        return compare(scenario, hospitals, record, model_file, lambda text: _note(f"{scenario.name}: {text}"))
    datasets = [EncryptedDataset.open(site.dataset) for site in hospitals.sites]
    return Comparison(SharedPatients(len(shared(datasets)), trained_and_tested(datasets)))


def _report(
    scenario: Scenario,
    hospitals: Hospitals,
    record: FederationRecord,
    compared: Comparison,
    timing: dict[str, float],
) -> Report:
    """Return the federation's report with the results that only a simulation has."""
    report = report_of(record, scenario.sensitivity)
    return replace(
        report,
        scenario=scenario.name,
        mode="simulation",
        data=hospitals.data,
        sites=tuple(replace(s, baselines=compared.by_site.get(s.name, s.baselines)) for s in report.sites),
        shared_patients=compared.patients,
        baselines=compared.together,
        parity=compared.parity,
        settings={
            "rounds": scenario.rounds,
            "local epochs": scenario.epochs,
            "batch size": scenario.batch_size,
            "learning rate": scenario.learning_rate,
            "network": scenario.architecture + (", the frames vote" if scenario.voting else ""),
            "filters": ", ".join(map(str, scenario.filters)),
            "parameters": record.network.parameters(),
            "server optimizer": scenario.strategy or scenario.server_optimizer,
            "secure aggregation": "on: the coordinator saw random bytes"
            if record.masked
            else "OFF: the coordinator saw updates",
            "predicted": f"each {scenario.predict}",
            "split": scenario.split,
            "time gaps": scenario.gaps,
            "wanted sensitivity": scenario.sensitivity,
        },
        timing=timing,
        versions={name: version(name) for name in _VERSIONS},
    )


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
