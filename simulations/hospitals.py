"""Simulated hospitals: raw data of each, one key domain, and each site's encrypted dataset."""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random

from fedpp.config.contract_limits import MAX_DAYS, RunLimits
from fedpp.config.run_config import MAX_BOUND, SiteConfig
from fedpp.config.site_policy import EvaluationLimits, SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError
from fedpp.files import create_exclusively
from fedpp.imaging.account import read_accounted
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import partition_patients
from fedpp.imaging.visits import by_visit, of_length
from fedpp.ingest.ingestion import IngestSettings, ingest
from fedpp.keys import key_store
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_secret import Passphrase
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.vault_api.vault_channel import SCHEME, require_short

from .phantom import write_phantom
from .scenario import Scenario


@dataclass(frozen=True)
class Hospitals:
    """Simulated hospitals with raw data and keys, which no single party of a real federation holds together."""

    domain: KeyDomain
    domain_folder: Path
    passphrase_file: Path
    classes: ClassMap
    data: str  # one line: what the images are
    raw: tuple[Sequence[ImageSequence], ...]  # of each site
    sites: tuple[SiteConfig, ...]


def prepare(scenario: Scenario, data: Path | None, out: Path, sockets: Path) -> Hospitals:
    """Read or generate raw data, generate keys, and ingest each site's data into folders of `out`."""
    require_short(socket_of(sockets, scenario.run.sites - 1))
    raw, described = sequences_of(scenario, data, out)
    everything = [sequence for site in raw for sequence in site]
    classes = ClassMap.choose(everything, scenario.classes, scenario.negative, scenario.choices().findings)
    raw = [classes.taken(site)[0] for site in raw]
    if not classes.classes:
        raise ConfigError("the data have no labels to train on: give them labels")
    passphrase_file = out / "passphrase"
    passphrase_file.touch(mode=0o600)
    text = secrets.token_urlsafe(24)
    passphrase_file.write_text(text + "\n")
    passphrase = Passphrase(text.encode(), log2_cost=10)  # 192 random bits need no slow hash
    domain = _domain(scenario)
    domain_ca = DomainCA(domain.ca_seed())
    key_store.found(out / "domain", domain, domain_ca, identity_of("simulation", scenario), passphrase)
    channels = 3 if scenario.colour else 1
    preparation = Preparation(scenario.run.training.dtype, scenario.frames, scenario.size, scenario.size, channels)
    settings = IngestSettings(preparation, scenario.plan(), scenario.gaps, scenario.patch)
    sites = []
    names = scenario.hospitals or [f"hospital-{number + 1}" for number in range(len(raw))]
    for number, (name, sequences) in enumerate(zip(names, raw, strict=True)):
        dataset, keys = out / "sites" / name, out / "keys" / name
        identity = identity_of(name, scenario)
        certificate = domain_ca.certify(identity.request(), domain.card())
        key_store.join(keys, key_store.Site(domain, identity, certificate), passphrase)
        _require_training(number, 1 if sequences else 0, held_out=0)
        made = ingest(sequences, dataset, domain=domain, class_map=classes, settings=settings, progress=True)
        _require_training(number, made.sequences["train"], held_out=sum(made.sequences.values()))
        address = f"{SCHEME}{socket_of(sockets, number)}"
        policy = out / "policies" / f"{name}.yaml"
        create_exclusively(policy, _policy(dataset, scenario).to_yaml().encode())
        sites.append(SiteConfig(dataset, keys / key_store.EVALUATION_KEY, address, policy, out / "trainers" / name))
    return Hospitals(domain, out / "domain", passphrase_file, classes, described, tuple(raw), tuple(sites))


def socket_of(folder: Path, number: int) -> Path:
    """Return the socket of the vault of site `number`, from 0, whose path does not depend on the hospital's name."""
    return folder / f"{number}.sock"


def _require_training(number: int, sequences: int, *, held_out: int) -> None:
    """Raise `ConfigError` for a site that could not train: its federation would wait for it until a time limit."""
    if not sequences:
        raise ConfigError(
            f"site {number + 1} has no sequence to train on, {held_out} are held out: give it more labelled patients, "
            "use fewer sites, or lower the shares of validation and test"
        )


def _policy(dataset: Path, scenario: Scenario) -> SitePolicy:
    """Return a simulated site's policy: its dataset, no bundle, and the weakest limits, but what a scenario accepts."""
    fingerprint = EncryptedDataset.open(dataset).manifest.fingerprint
    many = 10**9
    evaluation = EvaluationLimits(min_patients=1, per_round=many, rounds=many, per_day=many)
    limits = RunLimits(
        max_rounds=many,
        max_days=MAX_DAYS,
        min_learning_rate=sys.float_info.min,
        max_learning_rate=sys.float_info.max,
        min_server_learning_rate=sys.float_info.min,
        max_server_learning_rate=sys.float_info.max,
        max_update_value=MAX_BOUND,
        reporting="per-site",
        max_runs=many,
        max_starts=many,
        two_sites=scenario.two_sites,
    )
    return SitePolicy(
        bundles=(NO_BUNDLE,),
        datasets=(fingerprint,),
        evaluation=evaluation,
        limits=limits,
        min_other_sites=0,
        secure_aggregation="optional",
    )


def identity_of(name: str, scenario: Scenario) -> SiteIdentity:
    """Return the identity of a simulated site, whose seed derives from the scenario's and protects nothing.

    The initial weights of a run with secure aggregation depend on each member's certificate and coin.
    """
    return SiteIdentity(name, sha256(f"simulated site {name} of seed {scenario.run.training.seed}".encode()).digest())


def _domain(scenario: Scenario) -> KeyDomain:
    """Return the domain of a simulated federation, whose secret derives from the seed and protects nothing.

    Batches depend on the order of the keyed pseudonyms, so a random secret would make runs irreproducible.
    """
    secret = sha256(f"simulated domain of seed {scenario.run.training.seed}".encode()).digest()
    n = scenario.n if scenario.scheme == "more" else 1
    return KeyDomain.of_secret(secret, n=n, scheme=scenario.scheme)


def sequences_of(scenario: Scenario, data: Path | None, out: Path) -> tuple[list[list[ImageSequence]], str]:
    """Return each site's sequences, one a prediction, and a line that describes the data."""
    source = scenario.source(data)
    choices, sites, seed = scenario.choices(), scenario.run.sites, scenario.run.training.seed
    if isinstance(source, Path) and scenario.hospitals:
        read = [read_accounted(source / name, scenario.layout, choices) for name in scenario.hospitals]
        raw = [_predicted(scenario, sequences) for sequences, _ in read]
        lines = zip(scenario.hospitals, read, strict=True)
        recognised = ". ".join(f"{name}: {described}" for name, (_, described) in lines)
    elif isinstance(source, Path):
        sequences, recognised = read_accounted(source, scenario.layout, choices)
        raw = partition_patients(_predicted(scenario, sequences), sites, seed)
    else:
        folders = write_phantom(out / "raw", hospitals=sites, **asdict(source), seed=seed)
        raw = [_predicted(scenario, read_accounted(folder, scenario.layout, choices)[0]) for folder in folders]
        described = f"{source.patients} patients each, {source.visits} visits"
        recognised = f"phantom DICOM: {sites} hospitals, {described}"
    return ([_shuffled(site, seed) for site in raw] if scenario.shuffle_labels else raw), recognised


def _predicted(scenario: Scenario, sequences: Sequence[ImageSequence]) -> list[ImageSequence]:
    """Return the sequences of which the network predicts: whole ones, or windows of visits."""
    if scenario.predict == "sequence":
        return of_length(sequences, min_length=scenario.min_length, max_length=scenario.max_length)
    window = scenario.window or scenario.frames
    return by_visit(sequences, window=window, stride=scenario.stride, min_length=scenario.min_length)


def _shuffled(sequences: Sequence[ImageSequence], seed: int) -> list[ImageSequence]:
    """Shuffle the labels among the patients."""
    patients = sorted({s.patient: s.label for s in sequences}.items())
    labels = [label for _, label in patients]
    Random(seed).shuffle(labels)  # noqa: S311  no secret depends on it
    dealt = {patient: label for (patient, _), label in zip(patients, labels, strict=True)}
    return [replace(s, label=dealt[s.patient]) for s in sequences]
