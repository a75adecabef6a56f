"""The simulated hospitals: raw data of each, one key domain, and each site's encrypted dataset."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random

from fedpp.config import SiteConfig
from fedpp.errors import ConfigError
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.layout import read_sequences
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import partition_patients
from fedpp.ingest import ingest
from fedpp.keys import encryption, store
from fedpp.keys.domain import KeyDomain

from .phantom import write_phantom
from .scenario import Scenario


@dataclass(frozen=True)
class Hospitals:
    """Everything that the simulation holds and no one party of a real federation does."""

    domain: KeyDomain
    domain_folder: Path
    passphrase_file: Path
    classes: ClassMap
    data: str  # one line: what the images are
    raw: tuple[Sequence[ImageSequence], ...]  # of each site
    sites: tuple[SiteConfig, ...]


def prepare(scenario: Scenario, data: Path | None, out: Path, sockets: Path) -> Hospitals:
    """Read or make the raw data, make the keys, and ingest each site's data under `out`."""
    raw, described = _raw(scenario, data, out)
    everything = [sequence for site in raw for sequence in site]
    classes = ClassMap.choose(everything, classes=scenario.classes, negative=scenario.negative)
    if not classes.classes:
        raise ConfigError("the data have no labels to train on: give them labels")
    passphrase_file = out / "passphrase"
    passphrase_file.touch(mode=0o600)
    passphrase_file.write_text(secrets.token_urlsafe(24) + "\n")
    domain = _domain(scenario)
    store.create(out / "domain", domain, store.read_passphrase(passphrase_file))
    sites = []
    for number, sequences in enumerate(raw):
        name = f"hospital-{number + 1}"
        dataset = out / "sites" / name
        ingest(
            sequences,
            dataset,
            card=domain.card(),
            pseudonym=domain.pseudonym,
            encrypt_frames=lambda values: encryption.encrypt_values(domain, values, scenario.dtype),
            encrypt_labels=lambda labels, k: encryption.encrypt_labels(domain, labels, k, scenario.dtype),
            class_map=classes,
            frames=scenario.frames,
            height=scenario.size,
            width=scenario.size,
            seed=scenario.seed,
            validation=scenario.validation,
            test=scenario.test,
            dtype=scenario.dtype,
            progress=True,
        )
        sites.append(SiteConfig(name, dataset, out / "domain" / store.EVALUATION_KEY, f"unix:{sockets / name}.sock"))
    return Hospitals(domain, out / "domain", passphrase_file, classes, described, tuple(raw), tuple(sites))


def _domain(scenario: Scenario) -> KeyDomain:
    """Return the domain of a simulated federation, whose secret anybody can compute from the seed.

    Batches follow the order of the keyed pseudonyms: with a drawn secret, no run could be repeated.
    """
    return KeyDomain(sha256(f"simulated domain of seed {scenario.seed}".encode()).digest(), n=scenario.n, epoch=1)


def _raw(scenario: Scenario, data: Path | None, out: Path) -> tuple[list[list[ImageSequence]], str]:
    source = scenario.source(data)
    if isinstance(source, Path):
        sequences, recognised = read_sequences(source, scenario.layout)
        raw = partition_patients(sequences, scenario.sites, scenario.seed)
    else:
        folders = write_phantom(out / "raw", hospitals=scenario.sites, **asdict(source), seed=scenario.seed)
        raw = [read_sequences(folder, scenario.layout)[0] for folder in folders]
        described = f"{source.patients} patients each, {source.visits} visits"
        recognised = f"phantom DICOM: {scenario.sites} hospitals, {described}"
    return ([_shuffled(site, scenario.seed) for site in raw] if scenario.shuffle_labels else raw), recognised


def _shuffled(sequences: Sequence[ImageSequence], seed: int) -> list[ImageSequence]:
    """Deal the patients' labels anew among them."""
    patients = sorted({s.patient: s.label for s in sequences}.items())
    labels = [label for _, label in patients]
    Random(seed).shuffle(labels)  # noqa: S311  no secret depends on it
    dealt = {patient: label for (patient, _), label in zip(patients, labels, strict=True)}
    return [replace(s, label=dealt[s.patient]) for s in sequences]
