"""Simulated hospitals: reproducible domains and splits, folders as hospitals, and the sequences of a scenario."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import HOSPITALS, SILENT, SPOILT, VISITS

from fedpp.config.run_config import SiteConfig
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, FedppError, RawDataError, VaultError
from fedpp.imaging.splits import METHODS
from fedpp.keys import encryption, key_store
from fedpp.protocol.counts import UNKNOWN
from simulations.comparison import shared, trained_and_tested
from simulations.hospitals import Hospitals, prepare, sequences_of
from simulations.scenario import PhantomData, Scenario
from simulations.simulated_federation import vaults

NAMED = {"name": "tiny", "description": "", "sites": 2, "rounds": 1}


def test_a_seed_fixes_domain_split_and_order(tmp_path: Path):
    """Two runs of one seed have the same domain and members, and the same sequences in the same order and splits."""
    made = []
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        phantoms = Scenario.of(**NAMED, seed=seed, size=16, phantom=PhantomData(8, 2, 24))
        made.append(prepare(phantoms, None, tmp_path / name, tmp_path / name))
    first, again, _ = made
    fingerprints = [h.domain.card().fingerprint for h in made]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    folders = [tmp_path / name / "keys" for name in ("first", "again", "other")]
    members = [[(site / key_store.REQUEST).read_text() for site in sorted(folder.iterdir())] for folder in folders]
    assert members[0] == members[1]
    assert not set(members[0]) & set(members[2])
    for one, two in zip(first.sites, again.sites, strict=True):
        tables = [EncryptedDataset.open(site.dataset).sequences for site in (one, two)]
        np.testing.assert_array_equal(*tables)


def test_labels_are_shuffled_among_the_patients(tmp_path: Path):
    """Shuffling keeps the images and each site's number of labels, and moves some labels."""
    phantoms = Scenario.of(**NAMED, seed=5, phantom=PhantomData(8, 2, 24))
    kept, _ = sequences_of(phantoms, None, tmp_path / "a")
    shuffled, _ = sequences_of(phantoms.changed(shuffle_labels=True), None, tmp_path / "b")
    moved = 0
    for one, two in zip(kept, shuffled, strict=True):
        assert [s.patient for s in one] == [s.patient for s in two]
        assert sorted(str(s.label) for s in one) == sorted(str(s.label) for s in two)
        moved += sum(a.label != b.label for a, b in zip(one, two, strict=True))
    assert moved > 0


def test_a_site_without_training_data_is_refused_at_once(tmp_path: Path):
    """Its number and what to do are named, before a vault starts: a federation would wait for it."""
    phantoms = Scenario.of(**NAMED, size=16, phantom=PhantomData(4, 2, 24), split="hashed", test=0.99, validation=0)
    with pytest.raises(ConfigError, match=r"^site 1 has no sequence to train on, 4 are held out: give it more [^\n]+$"):
        prepare(phantoms, None, tmp_path, tmp_path)
    assert not (tmp_path / "sites" / "hospital-2").exists()


def test_a_temporary_folder_that_is_too_long_for_sockets_is_named(tmp_path: Path):
    """Before data are read, in one line that says what to change."""
    out, sockets = tmp_path / "out", tmp_path / (100 * "x")
    with pytest.raises(ConfigError, match=r"is longer than 107 bytes: choose a shorter one, or .* a shorter TMPDIR$"):
        prepare(Scenario.of(**NAMED, phantom=PhantomData(4, 2, 24)), None, out, sockets)
    assert not out.exists()


def two_hospitals(**settings: object) -> Scenario:
    return Scenario.of(**NAMED, hospitals=tuple(HOSPITALS), frames=3, size=8, **settings)


def of_folders(data: Path, out: Path, **settings: object) -> Hospitals:
    out.mkdir()
    return prepare(two_hospitals(**settings), data, out, out)


def test_each_folder_is_a_hospital(chexpert: Path, tmp_path: Path):
    """Sites have the folders' names and patients, one sequence a labelled visit, and no time gaps."""
    made = of_folders(chexpert, tmp_path / "out", predict="visit", split="hashed")
    assert [site.dataset.name for site in made.sites] == ["north", "south"]
    assert made.data.startswith("north: CheXpert, by the header of its table: 14 sequences of 14 patients")
    assert ". south: CheXpert" in made.data
    for site, raw, patients in zip(made.sites, made.raw, HOSPITALS.values(), strict=True):
        dataset = EncryptedDataset.open(site.dataset)
        visits = sum(VISITS[patient % 3] for patient in patients) - (SILENT[0] in patients)
        assert len(raw) == len(dataset) == sum(dataset.counts().values()) == visits
        assert sum(dataset.patients().values()) == len(patients)
        assert (dataset.manifest.classes, dataset.manifest.gaps) == (
            ("no Pleural Effusion", "Pleural Effusion"),
            "none",
        )


@pytest.mark.parametrize("seed", [0, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 3, 4, 5))])
def test_a_patient_has_one_hashed_split_at_all_hospitals(chexpert: Path, tmp_path: Path, seed: int):
    """With hashed splits, a patient of two hospitals is in the same split at both, so no test is spoilt."""
    spoilt = {}
    for split in METHODS:
        made = of_folders(chexpert, tmp_path / split, predict="visit", split=split, seed=seed)
        datasets = [EncryptedDataset.open(site.dataset) for site in made.sites]
        assert len(shared(datasets)) == len(set.intersection(*map(set, HOSPITALS.values())))
        spoilt[split] = trained_and_tested(datasets)
    assert spoilt == {"hashed": 0, "stratified": SPOILT.get(seed, (0, 0))[0]}


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({"predict": "visit"}, {1, 2, 3}),
        ({"predict": "visit", "window": 2}, {1, 2}),
        ({"predict": "visit", "window": 2, "min_length": 2}, {2}),
        ({"predict": "visit", "stride": 2, "min_length": 2}, {2, 3}),
        ({"predict": "sequence"}, {1, 2, 3}),
        ({"predict": "sequence", "max_length": 2}, {1, 2}),
        ({"predict": "sequence", "min_length": 2}, {2, 3}),
    ],
)
def test_sequences_have_the_chosen_lengths(chexpert: Path, tmp_path: Path, settings: dict, lengths: set):
    """Windows, strides and lengths are those of the scenario."""
    raw, _ = sequences_of(two_hospitals(**settings), chexpert, tmp_path)
    assert {len(s.frames) for site in raw for s in site} == lengths


def test_a_stride_skips_visits(chexpert: Path, tmp_path: Path):
    """A stride of 2 takes every second labelled visit, from the last one backwards."""
    made, _ = sequences_of(two_hospitals(predict="visit", stride=2), chexpert, tmp_path)
    for raw, patients in zip(made, HOSPITALS.values(), strict=True):
        labelled = [VISITS[patient % 3] - (patient == SILENT[0]) for patient in patients]
        assert len(raw) == sum((count + 1) // 2 for count in labelled)


def test_the_finding_is_chosen(chexpert: Path, tmp_path: Path):
    """A target without labels in the folder is refused in one line."""
    with pytest.raises(FedppError, match="no labels to train on|no sequence"):
        of_folders(chexpert, tmp_path / "out", target="Edema")


@pytest.mark.parametrize("gaps", ["public", "encrypted"])
def test_gaps_are_kept_where_times_are_known(chexpert: Path, tmp_path: Path, gaps: str):
    """Dated visits give a dataset with the chosen gaps; CheXpert's undated ones are refused in one line."""
    with pytest.raises(RawDataError, match="no times"):
        of_folders(chexpert, tmp_path / "undated", gaps=gaps)
    dated = tmp_path / "dated"
    for hospital in ("north", "south"):
        shutil.copytree(chexpert / hospital, dated / hospital)
        images = sorted((dated / hospital).rglob("*.png"))
        rows = [f"{i.relative_to(dated / hospital)},{i.parts[-3]},{i.parts[-2][-1]},{i.parts[-2][-1]}" for i in images]
        (dated / hospital / "manifest.csv").write_text("\n".join(["path,patient,time,label", *rows]) + "\n")
    made = of_folders(dated, tmp_path / "out", gaps=gaps, predict="visit", negative="1")
    assert {EncryptedDataset.open(site.dataset).manifest.gaps for site in made.sites} == {gaps}


def test_several_findings_are_predicted_at_once(chexpert: Path, tmp_path: Path):
    """A visit with a known finding is predicted; each site's dataset is multi-label, in the target's order."""
    made = of_folders(chexpert, tmp_path / "out", predict="visit", target="Consolidation,Pleural Effusion")
    assert (made.classes.classes, made.classes.multi_label) == (("Consolidation", "Pleural Effusion"), True)
    for site, raw, patients in zip(made.sites, made.raw, HOSPITALS.values(), strict=True):
        dataset = EncryptedDataset.open(site.dataset)
        assert (dataset.manifest.classes, dataset.manifest.multi_label) == (made.classes.classes, True)
        silent = SILENT[0] in patients and SILENT[1] == 2
        assert len(raw) == sum(VISITS[patient % 3] for patient in patients) - silent
        states = encryption.decrypt_findings(made.domain, dataset.labels(np.arange(len(dataset))))
        seconds = sum(VISITS[patient % 3] > 1 for patient in patients)
        assert (states[:, 0] == UNKNOWN).sum() == seconds - silent


def test_colours_are_kept_if_the_scenario_says_so(chexpert: Path, tmp_path: Path):
    """Each site's dataset has three channels."""
    made = of_folders(chexpert, tmp_path / "out", predict="visit", colour=True)
    assert {EncryptedDataset.open(site.dataset).manifest.channels for site in made.sites} == {3}


def test_a_vault_that_does_not_start_is_named(tmp_path: Path):
    """The error names the hospital and ends with the last line that its vault printed."""
    domain, address = tmp_path / "domain", f"unix:{tmp_path}/vault.sock"
    site = SiteConfig(tmp_path / "north", domain / "keys" / "key.eval", address, tmp_path / "site.yaml", tmp_path)
    domain.mkdir()  # of the audit log
    with (
        pytest.raises(VaultError, match="the vault of north did not start: .*there is no policy"),
        vaults([site], tmp_path / "passphrase"),
    ):
        pytest.fail("no vault has started")
