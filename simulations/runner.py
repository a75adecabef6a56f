"""Run a scenario: hospitals, vaults, the federation, its plaintext twin, and the report."""

import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedpp.command import load_tensorflow
from fedpp.config import SPLITS
from fedpp.errors import ConfigError
from fedpp.learning.metrics import count, metrics
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.federation import FederationRecord
from fedpp.report import (
    Baselines,
    Confusion,
    Parity,
    RefusedSite,
    Report,
    RoundResult,
    SiteResult,
    write_report,
)

from .federation import federate, vaults
from .hospitals import Hospitals, prepare
from .scenario import Scenario

_VERSIONS = ("fedpp", "flwr", "tensorflow", "keras", "numpy", "ray")
_OURS = ("domain", "passphrase", "raw", "sites", "federation", "report.json", "report.html")
_MARK = ".fedpp-run"  # only a folder that holds it is a run of ours, which may be overwritten


def run(scenario: Scenario, data: Path | None, out: Path, *, overwrite: bool) -> Report:
    """Run a scenario into the folder `out`, and write `report.json` and `report.html` there."""
    scenario.source(data)
    _clear(out, data, overwrite=overwrite)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        _note(f"{scenario.name}: reading and encrypting (the keys follow from the seed, and protect nothing)")
        hospitals = prepare(scenario, data, out, Path(sockets))
        prepared = time.monotonic()
        _note(f"{scenario.name}: {scenario.rounds} rounds on ciphertext, {len(hospitals.sites)} sites")
        with vaults(hospitals.sites, hospitals.domain_folder, hospitals.passphrase_file):
            record = federate(hospitals.sites, run_config(scenario, hospitals, out / "federation"))
    federated = time.monotonic()
    baselines, parity = Baselines(), None
    if scenario.plaintext_federated:
        _note(f"{scenario.name}: the plaintext twin")
        baselines, parity = compare(scenario, hospitals, record, out / "federation" / "model.npz")
    timing = {
        "prepare": prepared - started,
        "federate": federated - prepared,
        "compare": time.monotonic() - federated,
        "total": time.monotonic() - started,
    }
    report = _report(scenario, hospitals, record, baselines, parity, timing)
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
    return {
        "domain": hospitals.domain.card().fingerprint,
        "out": str(out.resolve()),
        "sites": len(hospitals.sites),
        "rounds": scenario.rounds,
        "epochs": scenario.epochs,
        "batch-size": scenario.batch_size,
        "learning-rate": scenario.learning_rate,
        "seed": scenario.seed,
        "dtype": scenario.dtype,
        "filters": ",".join(map(str, scenario.filters)),
        "kernel": 3,
        "dense": scenario.dense,
        "lstm": scenario.lstm,
        "wait-seconds": 60.0,  # all nodes are there from the start
        "reply-seconds": 3600.0,
    }


def compare(
    scenario: Scenario, hospitals: Hospitals, record: FederationRecord, model_file: Path
) -> tuple[Baselines, Parity]:
    """Train the plaintext twin; return its test metrics, and how far the federation is from it."""
    load_tensorflow()
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.keys import encryption
    from fedpp.learning.metrics import softmax
    from fedpp.learning.training import EncryptedTrainer

    from .twin import PlaintextTwin, Training, moved, plaintext_sites

    network = record.network
    sites = plaintext_sites(hospitals, network)
    training = Training(
        scenario.rounds,
        scenario.epochs,
        scenario.batch_size,
        scenario.learning_rate,
        scenario.seed,
        scenario.dtype,
    )
    twin = PlaintextTwin(network, training)
    initial = twin.initial(hospitals.domain)
    weights = twin.federate(sites, initial)
    probabilities = [twin.probabilities(weights, site) for site in sites]
    counts = [
        count(site.labels[site.split["test"]], p[site.split["test"]])
        for site, p in zip(sites, probabilities, strict=True)
    ]

    model = EncryptedModel.load(model_file)
    trainer = EncryptedTrainer(network, hospitals.domain.evaluation_key(), scenario.dtype)
    trainer.load(model.rows)
    differences = []
    for site, p in zip(hospitals.sites, probabilities, strict=True):
        dataset = EncryptedDataset.open(site.dataset)
        for split in SPLITS:
            logits = encryption.decrypt(hospitals.domain, trainer.logits(dataset, split, scenario.batch_size))
            differences.append(np.abs(softmax(logits) - p[dataset.indices(split)]).max(initial=0.0))
    controls = []
    for draw in range(scenario.control_draws):
        _note(f"{scenario.name}: control {draw + 1} of {scenario.control_draws}")
        other = twin.federate(sites, moved(initial, draw))
        pairs = zip(sites, probabilities, strict=True)
        controls.append(float(np.max([np.abs(twin.probabilities(other, s) - p).max() for s, p in pairs])))
    decrypted = [encryption.decrypt(hospitals.domain, model.rows[spec.name]) for spec in network.weights()]
    parity = Parity(
        max_abs_probability_difference=float(np.max(differences)),
        max_abs_weight_difference=float(np.max([np.abs(a - b).max() for a, b in zip(decrypted, weights, strict=True)])),
        control_probability_differences=tuple(controls),
    )
    return Baselines(plaintext_federated=metrics(sum(counts[1:], counts[0]))), parity


def _report(
    scenario: Scenario,
    hospitals: Hospitals,
    record: FederationRecord,
    baselines: Baselines,
    parity: Parity | None,
    timing: dict[str, float],
) -> Report:
    total = record.test_counts()
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
        rounds=tuple(RoundResult(r.number, r.sites, metrics(r.validation), r.seconds) for r in record.rounds),
        final=metrics(total),
        confusion=Confusion(hospitals.classes.classes, total.confusion),
        refused=tuple(RefusedSite(name, reason) for name, reason in record.refused.items()),
        baselines=baselines,
        parity=parity,
        settings={
            "rounds": scenario.rounds,
            "local epochs": scenario.epochs,
            "batch size": scenario.batch_size,
            "learning rate": scenario.learning_rate,
            "filters": ", ".join(map(str, scenario.filters)),
            "parameters": record.network.parameters(),
        },
        timing=timing,
        versions={name: version(name) for name in _VERSIONS},
    )


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
