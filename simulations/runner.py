"""Run a scenario: hospitals, vaults, the federation, its plaintext twin, and the report."""

import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.command import load_tensorflow
from fedpp.config import SPLITS, RunConfig
from fedpp.errors import ConfigError, FederationError
from fedpp.learning.metrics import metrics, operating_point
from fedpp.protocol.federation import FederationRecord
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.report import (
    Baselines,
    Confusion,
    FindingResult,
    Parity,
    RefusedSite,
    Report,
    RoundResult,
    SharedPatients,
    SiteResult,
    privacy_of,
    write_report,
)
from sites.pull import opened

from .federation import federate, vaults
from .hospitals import Hospitals, prepare
from .scenario import Scenario
from .shared_patients import shared, trained_and_tested

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
_MARK = ".fedpp-run"  # only a folder that holds it is a run of ours, which may be overwritten


def run(scenario: Scenario, data: Path | None, out: Path, *, overwrite: bool) -> Report:
    """Run a scenario into the folder `out`, and write `report.json` and `report.html` there."""
    scenario.source(data)
    config = RunConfig.from_mapping(_settings(scenario, card="", sites=scenario.sites, out=out))
    if config.strategy:
        from coordinator.chosen_strategy import ChosenStrategy

        ChosenStrategy.of(config, scenario.scheme)
    _clear(out, data, overwrite=overwrite)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        _note(f"{scenario.name}: reading and encrypting (the keys follow from the seed, and protect nothing)")
        hospitals = prepare(scenario, data, out, Path(sockets))
        prepared = time.monotonic()
        _note(f"{scenario.name}: {scenario.rounds} rounds on ciphertext, {len(hospitals.sites)} sites")
        with vaults(hospitals.sites, hospitals.passphrase_file):
            record = federate(hospitals.sites, run_config(scenario, hospitals, out / "federation"))
        if scenario.masking:
            model = opened(out / "federation" / "model.sealed", hospitals.domain).model()
            model.save(out / "federation" / "model.npz")
    federated = time.monotonic()
    baselines, parity, patients = _compared(scenario, hospitals, record, out / "federation" / "model.npz")
    timing = {
        "prepare": prepared - started,
        "federate": federated - prepared,
        "compare": time.monotonic() - federated,
        "total": time.monotonic() - started,
    }
    report = _report(scenario, hospitals, record, baselines, parity, patients, timing)
    write_report(out, report)
    return report


def _clear(out: Path, data: Path | None, *, overwrite: bool) -> None:
    """Make the folder of a run; an earlier run in it goes, if that is wanted, and nothing but a run does."""
    if data is not None and data.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"the data {data} lie inside the run's folder {out}: choose another --out")
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
        "initial": "",
        "sites": sites,
        "quorum": sites,
        "rounds": scenario.rounds,
        "epochs": scenario.epochs,
        **{name.replace("_", "-"): value for name, value in scenario.recipe().to_mapping().items()},
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
        "masking": scenario.masking,
        "most-examples": 0,
        "update-bound": 8.0,
        "update-norm": 10.0,
        "loss-rise": 1.0,
        "repeats": 2,
        "wait-seconds": 600.0,  # all nodes are there from the start, and busy machines are slow to ask them
        "round-seconds": 3600.0,
    }


def _compared(
    scenario: Scenario, hospitals: Hospitals, record: FederationRecord, model_file: Path
) -> tuple[Baselines, Parity | None, SharedPatients]:
    if scenario.plaintext_federated or scenario.plaintext_central or scenario.local_only:
        load_tensorflow()
        from .baselines import compare

        return compare(scenario, hospitals, record, model_file, lambda text: _note(f"{scenario.name}: {text}"))
    datasets = [EncryptedDataset.open(site.dataset) for site in hospitals.sites]
    return Baselines(), None, SharedPatients(len(shared(datasets)), trained_and_tested(datasets))


def _report(
    scenario: Scenario,
    hospitals: Hospitals,
    record: FederationRecord,
    baselines: Baselines,
    parity: Parity | None,
    patients: SharedPatients,
    timing: dict[str, float],
) -> Report:
    tested = record.test_counts()
    return Report(
        scenario=scenario.name,
        seed=scenario.seed,
        scheme=hospitals.domain.card().scheme,
        n=scenario.n,
        dtype=scenario.dtype,
        mode="simulation",
        data=hospitals.data,
        sites=tuple(
            SiteResult(
                site.name,
                sum(site.patients),
                dict(zip(SPLITS, site.sequences, strict=True)),
                metrics(record.test[site.name]) if site.name in record.test else None,
            )
            for site in record.sites
        ),
        rounds=tuple(RoundResult(r.number, r.sites, metrics(r.together), r.seconds) for r in record.rounds),
        final=metrics(tested),
        **_decisions(hospitals.classes.classes, record.rounds[-1].together, tested, scenario.sensitivity),
        refused=tuple(RefusedSite(name, reason) for name, reason in record.refused.items()),
        shared_patients=patients,
        baselines=baselines,
        parity=parity,
        settings={
            "rounds": scenario.rounds,
            "local epochs": scenario.epochs,
            "batch size": scenario.batch_size,
            "learning rate": scenario.learning_rate,
            "network": scenario.architecture + (", the frames vote" if scenario.voting else ""),
            "filters": ", ".join(map(str, scenario.filters)),
            "parameters": record.network.parameters(),
            "server optimizer": scenario.strategy or scenario.server_optimizer,
            "masking": "on: the coordinator saw random bytes" if record.masked else "OFF: the coordinator saw updates",
            "predicted": f"each {scenario.predict}",
            "split": scenario.split,
            "time gaps": scenario.gaps,
            "wanted sensitivity": scenario.sensitivity,
        },
        timing=timing,
        privacy=privacy_of(masked=record.masked),
        versions={name: version(name) for name in _VERSIONS},
    )


def _decisions(
    classes: tuple[str, ...], validation: AnyCounts, tested: AnyCounts, sensitivity: float
) -> dict[str, Any]:
    """Return the report's confusion and operating point, or its findings."""
    if isinstance(tested, FindingCounts) and isinstance(validation, FindingCounts):
        of_each = zip(classes, validation.findings, tested.findings, strict=True)
        results = {name: FindingResult.of(chosen, found, sensitivity) for name, chosen, found in of_each}
        return {"confusion": None, "findings": results}
    if isinstance(tested, FindingCounts) or isinstance(validation, FindingCounts):
        raise FederationError("counts of one label and of several findings do not belong to one federation")
    point = operating_point(validation, tested, sensitivity)
    return {"confusion": Confusion(classes, tested.confusion), "operating_point": point}


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
