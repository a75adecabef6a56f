"""Lookup: pseudonyms of every layout lead back to their patient and pictures, and those of others to nobody."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import write_hospitals
from conftest import DATA
from PIL import Image
from public_layouts import Tree, mimic_cxr, nih_chestxray14

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation, prepare
from fedpp.imaging.readable import readable
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import SplitPlan
from fedpp.imaging.visits import by_visit, of_length
from fedpp.ingest.ingestion import IngestSettings, ingest, sequence_pseudonym
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.survey.lookup import look_up, of_patients
from simulations.phantom import write_phantom

SETTINGS = IngestSettings(Preparation("float64", 2, 6, 6), SplitPlan("stratified", 0, validation=0.2, test=0.2))
Ingested = list[ImageSequence]


def pictures(root: Path, names: list[str]) -> list[str]:
    """Write a picture that no other one is like for each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return names


def dicom(root: Path) -> set[str]:
    write_phantom(root, hospitals=1, patients=4, visits=2, size=16, seed=0)
    with next(root.rglob("labels.csv")).open() as table:
        return {row["patient"] for row in csv.DictReader(table)}


def manifest(root: Path) -> set[str]:
    """Write two sequences a patient, one of them of two labelled images."""
    names = pictures(root, [f"{patient}{image}.png" for patient in range(4) for image in range(3)])
    lines = [f"{name},MRN é {name[0]},{'chest' if name[1] < '2' else 'hand'},{int(name[0]) % 2}" for name in names]
    (root / "manifest.csv").write_text("\n".join(["path,patient,sequence,label", *lines]))
    return {f"MRN é {patient}" for patient in range(4)}


def frames(root: Path) -> set[str]:
    pictures(root, [f"scan{folder}/{frame}.png" for folder in range(4) for frame in range(3)])
    lines = [f"scan{folder},P-{folder // 2},{folder % 2}" for folder in range(4)]
    (root / "index.csv").write_text("\n".join(["sequence,patient,label", *lines]))
    return {"P-0", "P-1"}


def images(root: Path) -> set[str]:
    pictures(root, [f"patient {folder}/{frame}.png" for folder in range(3) for frame in range(2)])
    return {f"patient {folder}" for folder in range(3)}


def chexpert(root: Path) -> set[str]:
    write_hospitals(root)
    return {f"patient{number:05d}" for number in range(1, 15)}


def classes(root: Path) -> set[str]:
    pictures(root, [f"{kind}/patient{number}_1.png" for kind in ("benign", "malignant") for number in range(3)])
    return {f"patient{number}" for number in range(3)}


def public(write: Callable[..., Tree]) -> Callable[[Path], set[str]]:
    """Return what writes a tree of a public set, and names its patients with a label."""

    def written(root: Path) -> set[str]:
        patients = write(root, 12).patients.items()
        return {name for name, of in patients if any(label is not None for label in of.labels)}

    return written


def whole(read: Ingested) -> Ingested:
    return of_length(read)


def visits(read: Ingested) -> Ingested:
    return by_visit(read, window=2, stride=2)


CASES: dict[str, tuple[Callable[[Path], set[str]], str, Callable[[Ingested], Ingested]]] = {
    "dicom": (dicom, "hospital-1", whole),
    "manifest": (manifest, "", whole),
    "visits of a manifest": (manifest, "", visits),
    "frames": (frames, "", whole),
    "images": (images, "", whole),
    "chexpert": (chexpert, "north", whole),
    "visits of chexpert": (chexpert, "north", visits),
    "the newest images": (chexpert, "north", lambda read: of_length(read, max_length=2)),
    "classes": (classes, "", whole),
    "mimic-cxr": (public(mimic_cxr), "", whole),
    "visits of mimic-cxr": (public(mimic_cxr), "", visits),
    "nih-chestxray14": (public(nih_chestxray14), "", whole),
    "visits of nih-chestxray14": (public(nih_chestxray14), "", visits),
}


@pytest.mark.parametrize(("write", "folder", "taken"), CASES.values(), ids=CASES)
def test_each_pseudonym_of_a_dataset_leads_to_its_patient_and_its_pictures(
    write: Callable[[Path], set[str]],
    folder: str,
    taken: Callable[[Ingested], Ingested],
    tmp_path: Path,
    domain: KeyDomain,
):
    """The decrypted frames are those of the sequence that was found, in its newest images; no patient is missing."""
    (tmp_path / "raw").mkdir()
    patients = write(tmp_path / "raw")
    raw = tmp_path / "raw" / folder
    chosen = [s for s in taken(read_sequences(raw)[0]) if s.label is not None or write is images]
    class_map = ClassMap.choose(chosen, None, None)
    ingest(chosen, tmp_path / "out", domain=domain, class_map=class_map, settings=SETTINGS)
    dataset = EncryptedDataset.open(tmp_path / "out")
    every = np.arange(len(dataset))
    found = look_up(dataset.ids(every), read_sequences(raw)[0], domain)
    assert list(found) == dataset.ids(every)
    assert {what.sequence.patient for what in found.values()} == patients
    decrypted = encryption.decrypt(domain, dataset.frames(every))
    for row, values, what in zip(dataset.sequences, decrypted, found.values(), strict=True):
        newest = of_length([what.sequence], max_length=int(row["length"]))[0]
        expected = prepare(newest, 2, 6, 6)
        np.testing.assert_allclose(values[: len(expected)], expected, atol=1e-9)
        assert row["patient"].decode() == domain.pseudonym("patient", what.sequence.patient)
        assert what.names() == {"patient": what.sequence.patient, "sequence": what.sequence.id}


@pytest.mark.parametrize("series", ["magnification", "slide"])
def test_real_slides_are_found_as_they_were_read(series: str, domain: KeyDomain):
    """A choice of the layout changes the sequences: read in the same way they are found, and in no other way."""
    raw = DATA / "breakhis_layout"
    read = {of: read_sequences(raw, choices=Choices(series=of))[0] for of in ("magnification", "slide")}
    pseudonyms = [sequence_pseudonym(domain, sequence) for sequence in read[series]]
    assert list(look_up(pseudonyms, read[series], domain)) == pseudonyms
    (other,) = read.keys() - {series}
    assert look_up(pseudonyms, read[other], domain) == {}


def test_a_patients_pseudonym_names_the_patient_alone(tmp_path: Path, domain: KeyDomain):
    """Of several sequences none is named; order and repetition are those of the question."""
    manifest(tmp_path)
    sequences = read_sequences(tmp_path)[0]
    asked = [domain.pseudonym("patient", f"MRN é {patient}") for patient in (3, 0)]
    found = look_up([*asked, "0" * 32], sequences, domain)
    assert {name: what.names() for name, what in found.items()} == {
        asked[0]: {"patient": "MRN é 3", "sequence": None},
        asked[1]: {"patient": "MRN é 0", "sequence": None},
    }
    assert look_up([], sequences, domain) == {}


def test_another_domain_finds_nobody(tmp_path: Path, domain: KeyDomain):
    """Pseudonyms are those of one domain and key epoch; the next epoch renews them, and then they are found."""
    manifest(tmp_path)
    sequences = read_sequences(tmp_path)[0]
    pseudonyms = [sequence_pseudonym(domain, sequence) for sequence in sequences]
    assert look_up(pseudonyms, sequences, KeyDomain.of_secret(bytes(32), n=2)) == {}
    later = domain.successor("0" * 64)
    assert look_up(pseudonyms, sequences, later) == {}
    renewed = [later.renewed("sequence", pseudonym, 1) for pseudonym in pseudonyms]
    assert [what.sequence for what in look_up(renewed, sequences, later).values()] == sequences


def test_a_picture_that_was_skipped_moves_no_visit(tmp_path: Path, domain: KeyDomain):
    """`ingest --skip-unreadable` numbers visits without a damaged one; pictures of a patient are found in that way."""
    names = pictures(tmp_path, [f"{image}.png" for image in range(4)])
    lines = [f"{name},MRN,{int(name[0]) % 2}" for name in names]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,patient,label", *lines]))
    whole_pictures = [np.asarray(Image.open(tmp_path / name)) for name in names]
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    taken = by_visit(readable(read_sequences(tmp_path)[0], lambda *_: None), window=1)
    asked = [sequence_pseudonym(domain, sequence) for sequence in taken]
    sequences = of_patients({domain.pseudonym("patient", "MRN")}, read_sequences(tmp_path)[0], domain)
    found = look_up(asked, sequences, domain)
    assert list(found) == asked
    shown = [what.sequence.frames[-1] for what in found.values()]
    np.testing.assert_array_equal(shown, [whole_pictures[image] for image in (0, 2, 3)])


def test_a_patient_of_whom_nothing_can_be_read_is_still_named(tmp_path: Path, domain: KeyDomain):
    """All pictures are damaged: the sequence stays, so that its patient is found; others' are left out."""
    manifest(tmp_path)
    (tmp_path / "02.png").write_bytes((tmp_path / "02.png").read_bytes()[:60])
    kept = of_patients({domain.pseudonym("patient", "MRN é 0")}, read_sequences(tmp_path)[0], domain)
    assert [(sequence.patient, len(sequence.frames)) for sequence in kept] == [("MRN é 0", 2), ("MRN é 0", 1)]
