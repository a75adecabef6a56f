"""The format page is complete: a reader that was written from it alone reads what fedpp writes."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import independent_reader as page
import numpy as np
import pytest
from conftest import FINDINGS, ROOT

from fedpp.aggregation import global_state
from fedpp.config.model_spec import Architecture, ModelChoices, ModelSpec
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.task import Task
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation, prepare
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import SplitPlan
from fedpp.ingest.ingestion import IngestSettings, ingest
from fedpp.keys import key_store
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_secret import Passphrase
from fedpp.keys.site_identity import SiteIdentity
from fedpp.learning import models
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights

SECRET = bytes(range(32))
FRAMES, SIDE = 3, 112  # more values than are encrypted at a time
PATIENTS = ("P-1", "Ærø", "P 3", "P-4")
SETTINGS = IngestSettings(Preparation("float64", FRAMES, SIDE, SIDE), SplitPlan(validation=0.2, test=0.3))
PAGE = (ROOT / "docs" / "reference" / "dataset_format.md").read_text()


@cache
def domain(scheme: str = "more") -> KeyDomain:
    """Return a domain of three slots, or of mixed frames."""
    return KeyDomain.of_secret(SECRET, n=3 if scheme == "more" else 1, scheme=scheme)


@cache
def keys(scheme: str = "more") -> page.Keys:
    """Return its keys by the page."""
    card = json.loads(domain(scheme).card().to_json())
    del card["fingerprint"]
    return page.Keys(SECRET, card)


def sequences(side: tuple[int, int] = (130, 93), *, findings: bool = False) -> list[ImageSequence]:
    """Return sequences of 1 to 4 frames, larger than the dataset's on one side and smaller on the other."""
    generator = np.random.default_rng(0)
    made = []
    for number, patient in enumerate(PATIENTS):
        label = tuple("10"[number >> bit & 1] if bit != number else None for bit in range(len(FINDINGS)))
        frames = tuple(generator.uniform(0, 255, (number + 1, *side)))
        times = tuple(np.cumsum(generator.integers(0, 500, number + 1)).astype(float))
        made.append(
            ImageSequence(f"scan {number}", patient, label if findings else "ab"[number % 2], frames, times=times)
        )
    return made


def by_id(of: list[ImageSequence], scheme: str = "more") -> list[ImageSequence]:
    """Return sequences in the table's order: by the pseudonym of the JSON of patient and sequence."""
    return sorted(of, key=lambda s: keys(scheme).pseudonym("sequence", json.dumps([s.patient, s.id])))


def written(folder: Path, of: list[ImageSequence], scheme: str = "more", **changes: object) -> page.Dataset:
    """Ingest sequences, and open the dataset by the page."""
    classes = ClassMap(FINDINGS, multi_label=True) if isinstance(of[0].label, tuple) else ClassMap(("a", "b"))
    settings = replace(SETTINGS, **changes)
    ingest(of, folder / "dataset", domain=domain(scheme), class_map=classes, settings=settings)
    return page.Dataset(folder / "dataset", keys(scheme).derive("at rest") if settings.at_rest else None)


@pytest.mark.parametrize("at_rest", [False, True])
def test_pixels_labels_and_names_are_as_the_page_says(tmp_path: Path, *, at_rest: bool):
    """Resized by the triangle filter, thinned, standardised, padded, encrypted; sealed or not."""
    of = sequences()
    dataset = written(tmp_path, of, at_rest=at_rest)
    assert dataset.manifest["domain"] == keys().fingerprint()
    r = keys().matrix()
    pixels, labels = (dataset.values("frames") @ r)[..., 0], (dataset.values("labels") @ r)[..., 0]
    ordered = by_id(of)
    for sequence, row, found, label in zip(ordered, dataset.table(), pixels, labels, strict=True):
        assert row[0] == keys().pseudonym("sequence", json.dumps([sequence.patient, sequence.id]))
        assert row[1] == keys().pseudonym("patient", sequence.patient)
        assert row[2] == len(sequence.frames)
        kept = [page.resized(sequence.frames[i], SIDE, SIDE) for i in page.thinned(row[2], FRAMES)]
        np.testing.assert_allclose(found[: len(kept), ..., 0], page.standardised(kept), atol=1e-5)
        assert not found[len(kept) :].any()
        np.testing.assert_allclose(label, np.eye(2)["ab".index(sequence.label)], atol=1e-9)


def test_decoys_are_as_the_page_says(tmp_path: Path):
    """Of pixels, labels and gaps: the slots after the first are those of the keystream."""
    of = sequences()
    dataset = written(tmp_path, of, gaps="encrypted")
    slots = {kind: dataset.values(kind) @ keys().matrix() for kind in ("frames", "labels", "gaps")}
    for place, (sequence, row) in enumerate(zip(by_id(of), dataset.table(), strict=True)):
        values = prepare(sequence, FRAMES, SIDE, SIDE)
        words = keys().decoy_words("frames", row[0], values.tobytes(), 2 * values.size + 16)
        found, start = slots["frames"][place, : len(values)].reshape(-1, 3), 0
        for first in range(0, values.size, 2**15):
            part = found[first : first + 2**15]
            for slot in (1, 2):
                drawn = words[start : start + len(part)] / 2**15 * 3**0.5
                np.testing.assert_allclose(part[:, slot], drawn, atol=1e-9)
                start += -len(part) // 8 * -8
        number = np.array(["ab".index(sequence.label), 2], "<i8")
        decoys = (keys().decoy_words("label", row[0], number.tobytes(), 2) + 2**15) % 2
        np.testing.assert_allclose(slots["labels"][place, :, 1:], np.eye(2)[:, decoys.astype(int)], atol=1e-9)
        days = np.array([sequence.times[i] for i in page.thinned(row[2], FRAMES)])
        gaps = np.log(1 + np.diff(days, prepend=days[0])) / np.log(366)
        np.testing.assert_allclose(slots["gaps"][place, : len(gaps), 0], gaps, atol=1e-9)
        drawn = (keys().decoy_words("gaps", row[0], gaps.tobytes(), 2 * gaps.size) / 2**15 + 1) * 0.75
        np.testing.assert_allclose(slots["gaps"][place, : len(gaps), 1:].T.ravel(), drawn, atol=1e-9)


def test_findings_are_as_the_page_says(tmp_path: Path):
    """A pair for each finding: present, absent, unknown; decoys are never unknown."""
    of = sequences(findings=True)
    dataset = written(tmp_path, of)
    pairs = np.moveaxis(dataset.values("labels") @ keys().matrix(), -1, 1)
    for sequence, row, found in zip(by_id(of), dataset.table(), pairs, strict=True):
        states = np.array([{"1": 1, "0": 0, None: -1}[state] for state in sequence.label], "<i8")
        drawn = keys().decoy_words("findings", row[0], states.tobytes(), 2 * len(states)).astype(int) % 2
        expected = [[[(1, 0), (0, 1), (0, 0)][state] for state in slot] for slot in (states, *drawn.reshape(2, -1))]
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("patch", [0, 2])
def test_mixed_frames_are_as_the_page_says(tmp_path: Path, patch: int):
    """K is from signed words, and undoes the mixing of squares or of rows."""
    of = sequences((SIDE, SIDE))
    dataset = written(tmp_path, of, "more-frame", patch=patch, gaps="public")
    mixed = dataset.values("frames")[..., 0]
    for sequence, row, found in zip(by_id(of, "more-frame"), dataset.table(), mixed, strict=True):
        kept = [sequence.frames[i] for i in page.thinned(row[2], FRAMES)]
        used = found[: len(kept)]
        if patch:
            plain = page.mixed_back(used, keys("more-frame").frame_key("patches", 4), 2)
        else:
            plain = (used[..., 0] @ keys("more-frame").frame_key("rows", SIDE).T)[..., None]
        np.testing.assert_allclose(plain[..., 0], page.standardised(kept), atol=1e-5)


def test_a_folder_of_keys_is_as_the_page_says(tmp_path: Path):
    """The domain's secret under the passphrase file's first line; R and the at-rest key are derived from it."""
    ca = DomainCA.generate()
    founded = KeyDomain.found(ca.public_key)
    passphrase = Passphrase(b"correct horse battery", log2_cost=10)
    key_store.found(tmp_path, founded, ca, SiteIdentity.generate("East"), passphrase)
    read = page.Keys.unsealed(tmp_path, b"  correct horse battery\t\nanother line\n")
    card = json.loads((tmp_path / "domain.card").read_text())
    assert card == {**read.card, "fingerprint": read.fingerprint()}
    trainer = json.loads((tmp_path / "trainer" / "domain.eval").read_text())
    assert [[float.fromhex(entry) for entry in row] for row in trainer["r"]] == read.matrix().tolist()
    assert json.loads((tmp_path / "trainer" / "domain.rest").read_text())["key"] == read.derive("at rest").hex()


@pytest.mark.parametrize("voting", [False, True])
def test_a_sealed_state_and_its_network_are_as_the_page_says(*, voting: bool):
    """The state's records are unsealed, its arrays have the names and order of the page, and decrypt."""
    choices = ModelChoices(filters=(2, 3), dense=4, lstm=2, voting=voting)
    network = ModelSpec(Task(2, 8, 12, 1, ("no", "yes"), gaps=True), choices)
    rows = encrypted_initial_weights(network, 5, domain().evaluation_key())
    facts = {"network": network, "domain": domain().card().fingerprint, "dtype": "float64"}
    rule = ServerOptimizerConfig()
    state = global_state.initial(rows, **facts, classes=("no", "yes"), rule=rule, salt="ab" * 32)
    content = state.to_bytes() + bytes(2**20)  # two records
    sealed = b"".join(domain().state_sealer().seal("run 1 round 2", [content]))
    about, opened = keys().opened_state(sealed)
    assert (about, opened) == ("run 1 round 2", content)
    name, header, values = page.container(opened[: -(2**20)])
    found = page.arrays(header, values)
    assert name == "fedpp-state-1"
    assert list(found) == [weight for weight in named_weights() if weight in found]
    assert voting == ("attention" in found)
    for weight, plain in initial_weights(network, 5).items():
        np.testing.assert_allclose((found[weight] @ keys().matrix())[..., 0], plain, atol=1e-9)


@pytest.mark.parametrize(
    ("architecture", "voting", "patch"),
    [("cnn", False, 0), ("cnn", True, 0), ("cnn-lstm", False, 2), ("cnn-bi-lstm", False, 0), ("cnn-bi-lstm", True, 2)],
)
def test_the_network_computes_what_the_page_says(architecture: Architecture, *, voting: bool, patch: int):
    """The names' layers in NumPy give the logits of the plaintext reference, for a padded sequence."""
    network = ModelSpec(
        Task(4, 8, 12, 1, ("a", "b", "c"), gaps=True, patch=patch),
        ModelChoices(architecture, voting=voting, filters=(2, 3), dense=4, lstm=2),
    )
    generator = np.random.default_rng(1)
    weights = {spec.name: generator.normal(size=spec.shape) / 2 for spec in network.weights()}
    model = models.plaintext(network, "float64")
    model.set_weights(list(weights.values()))
    frames, gaps, valid = generator.normal(size=(4, 8, 12, 1)), generator.uniform(size=4), 3
    inputs = [frames[None], np.arange(4)[None] < valid, gaps[None]]
    expected = np.asarray(model(inputs))[0]
    np.testing.assert_allclose(page.logits(weights, frames, valid, gaps, patch), expected, atol=1e-9)


def named_weights() -> list[str]:
    """Return the names in the page's table of weights, in its order; convK stands for each convolution."""
    table = PAGE.partition("## The network behind the names")[2].partition("\n## ")[0].partition("\n# ")[0]
    rows = [line.split("|")[1].strip().strip("`") for line in table.splitlines() if line.startswith("| `")]
    named: list[str] = []
    for block in ("convK/kernel", "convK/bias"):
        assert block in rows
    for row in rows:
        if row == "convK/kernel":
            named += [f"conv{k}/{part}" for k in range(2) for part in ("kernel", "bias")]
        elif not row.startswith("convK"):
            named.append(row)
    return named
