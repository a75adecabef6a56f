"""Runner of scenarios: hospitals, vaults, the federation, its baselines, and the report."""

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from coordinator.operator.report_command import BALANCED, report_of, written_on
from fedpp.cli import load_tensorflow
from fedpp.config.run_config import SiteConfig
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError
from fedpp.protocol.run_record import RECORD, FederationRecord
from fedpp.reporting.report import Report, write_report
from fedpp.reporting.report_results import SharedPatients
from sites.cli.pull_command import opened

from . import masked_start
from .comparison import Comparison, shared, trained_and_tested
from .hospitals import Hospitals, prepare
from .scenario import Scenario
from .simulated_federation import federate, vaults

_VERSIONS = ("fedpp", "flwr", "tensorflow", "keras", "numpy", "ray")
_FOLDERS = ("domain", "keys", "policies", "raw", "sites", "trainers", "federation")
_OURS = (*_FOLDERS, "passphrase", "report.json", "report.html")
_MARK = ".fedpp-run"  # marks the folder of a run, which may be overwritten


def run(scenario: Scenario, data: Path | None, out: Path, *, overwrite: bool) -> Report:
    """Run a scenario into the folder `out`, and write `report.json` and `report.html` there."""
    scenario.source(data)
    masked_start.require_accepted(scenario)
    if scenario.run.strategy:
        from coordinator.server.chosen_strategy import ChosenStrategy

        ChosenStrategy.of(scenario.run, scenario.scheme)
    _clear(out, data, overwrite=overwrite)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        if scenario.two_sites == "accepted":
            _note(f"{scenario.name}: two-sites: accepted, each of two sites can compute the other's update")
        _note(f"{scenario.name}: reading and encrypting (the keys derive from the seed and protect nothing)")
        hospitals = prepare(scenario, data, out, Path(sockets))
        prepared = time.monotonic()
        _note(f"{scenario.name}: {scenario.run.rounds} rounds on ciphertext, {len(hospitals.sites)} sites")
        with vaults(hospitals.sites, hospitals.passphrase_file):
            config = scenario.run_config(hospitals.domain.card().to_json(), out / "federation")
            masked_start.fix(scenario, out / "federation")
            record = _federate(scenario, hospitals.sites, config.to_flower())
            seed = masked_start.weight_seed(scenario, hospitals)
        if scenario.run.secure_aggregation:
            model = opened(out / "federation" / "model.sealed", hospitals.domain).state.model()
            model.save(out / "federation" / "model.npz")
    federated = time.monotonic()
    compared = _compared(scenario, hospitals, record, out / "federation" / "model.npz", seed)
    timing = {
        "prepare": prepared - started,
        "federate": federated - prepared,
        "compare": time.monotonic() - federated,
        "total": time.monotonic() - started,
    }
    report = _report(scenario, hospitals, record, compared, timing, written_on(out / "federation" / RECORD))
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


def _compared(
    scenario: Scenario, hospitals: Hospitals, record: FederationRecord, model_file: Path, seed: int
) -> Comparison:
    if scenario.plaintext_federated or scenario.plaintext_central or scenario.run.local_baseline:
        load_tensorflow()
        from .baselines import compare

        return compare(scenario, hospitals, record, model_file, seed, lambda text: _note(f"{scenario.name}: {text}"))
    datasets = [EncryptedDataset.open(site.dataset) for site in hospitals.sites]
    return Comparison(SharedPatients(len(shared(datasets)), trained_and_tested(datasets)))


def _report(
    scenario: Scenario,
    hospitals: Hospitals,
    record: FederationRecord,
    compared: Comparison,
    timing: dict[str, float],
    date: str,
) -> Report:
    """Return the federation's report with the results that only a simulation has."""
    run, training = scenario.run, scenario.run.training
    report = report_of(record, scenario.sensitivity, date, compared.tested)
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
            "rounds": run.rounds,
            "local epochs": training.epochs,
            "batch size": training.hyperparameters.batch_size,
            "learning rate": training.hyperparameters.learning_rate,
            "network": training.model.architecture + (", the frames vote" if training.model.voting else ""),
            "filters": ", ".join(map(str, training.model.filters)),
            "parameters": record.network.parameters(),
            "server optimizer": run.strategy or run.server_optimizer.name,
            "secure aggregation": "on: the coordinator saw random bytes"
            if record.masked
            else "OFF: the coordinator saw updates",
            **{name: value for name, value in report.settings.items() if name == BALANCED},
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
