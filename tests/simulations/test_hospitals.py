"""The simulated hospitals."""

from pathlib import Path

from fedpp.cipher.dataset import EncryptedDataset
from simulations.hospitals import Hospitals, prepare
from simulations.scenario import PhantomData, Scenario


def hospitals(folder: Path, seed: int, **settings: object) -> Hospitals:
    scenario = Scenario("tiny", "", 2, 1, seed=seed, size=16, phantom=PhantomData(8, 2, 24), **settings)
    folder.mkdir()
    return prepare(scenario, None, folder, folder)


def test_a_seed_fixes_domain_split_and_order(tmp_path: Path):
    """Two runs of one seed have the same domain, and the same sequences in the same order and splits."""
    first, again, other = (hospitals(tmp_path / name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    fingerprints = [h.domain.card().fingerprint for h in (first, again, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    for one, two in zip(first.sites, again.sites, strict=True):
        manifests = [EncryptedDataset.open(site.dataset).manifest for site in (one, two)]
        assert manifests[0].sequences == manifests[1].sequences


def test_shuffled_labels_are_dealt_among_the_patients(tmp_path: Path):
    """Dealing anew keeps the images and each site's number of labels, and moves some labels."""
    kept, dealt = hospitals(tmp_path / "a", 5), hospitals(tmp_path / "b", 5, shuffle_labels=True)
    moved = 0
    for one, two in zip(kept.raw, dealt.raw, strict=True):
        assert [s.patient for s in one] == [s.patient for s in two]
        assert sorted(str(s.label) for s in one) == sorted(str(s.label) for s in two)
        moved += sum(a.label != b.label for a, b in zip(one, two, strict=True))
    assert moved > 0
