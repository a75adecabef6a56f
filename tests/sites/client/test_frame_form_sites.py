"""Commands of a site with orthogonal frame mixing, from the key domain to the figures, and their refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from hospital import error_of, found, keys, site

from fedpp.dataset.encrypted_dataset import EncryptedDataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a hospital, with a second key domain of the scheme more-frame."""
    made = found(tmp_path_factory.mktemp("site"), patients=10)
    secret = ("--passphrase-file", made / "passphrase")
    (made / "mixed").mkdir()
    (made / "mixed" / "passphrase").symlink_to(made / "passphrase")
    site("keygen", "--scheme", "more-frame", "--out", made / "mixed" / "domain", *secret)
    return made


SHAPE = ("--size", 16, "--frames", 2, "--split", "stratified")


def test_a_site_trains_without_a_key(folder: Path):
    """Its frames are mixed in patches, its labels plain; it trains, and the secret zone evaluates."""
    raw, mixed = folder / "raw" / "hospital-1", folder / "mixed"
    site("ingest", raw, *keys(mixed), "--out", mixed / "data", *SHAPE, "--no-at-rest")
    shown = json.loads(site("inspect", mixed / "data", "--json").stdout)
    assert (shown["scheme"], shown["n"], shown["patch"]) == ("more-frame", 1, 2)
    assert not (mixed / "domain" / "trainer" / "domain.eval").exists()
    dataset = EncryptedDataset.open(mixed / "data")
    labels = dataset.labels(np.arange(len(dataset)))[..., 0]
    np.testing.assert_array_equal(labels.sum(axis=1), 1)
    training = ("train", mixed / "data", "--domain", mixed / "domain", "--epochs", 2, "--voting")
    site(*training, "--out", mixed / "model")
    figures = json.loads(site("evaluate", mixed / "model" / "model.npz", mixed / "data", *keys(mixed), "--json").stdout)
    assert 0 <= figures["auc"] <= 1
    other = ("train", mixed / "data", "--domain", folder / "domain", "--out", mixed / "other")
    assert "belongs to domain" in error_of(*other)
    assert not (mixed / "other").exists()
    site("ingest", raw, *keys(folder), "--out", folder / "of-rows", *SHAPE)
    assert "the model belongs to domain" in error_of(
        "evaluate", mixed / "model" / "model.npz", folder / "of-rows", *keys(folder)
    )
    rows = site("ingest", raw, *keys(mixed), "--out", mixed / "rows", *SHAPE, "--patch", 0)
    assert rows.returncode == 0
    assert json.loads(site("inspect", mixed / "rows", "--json").stdout)["patch"] == 0
    refused = error_of("evaluate", mixed / "model" / "model.npz", mixed / "rows", *keys(mixed))
    assert "in patches of 2 x 2" in refused


def test_unsupported_options_of_a_scheme_are_refused(folder: Path):
    """Patches in a domain of rows, sizes that are no whole patches, and gaps to encrypt are one line each."""
    raw, mixed = folder / "raw" / "hospital-1", folder / "mixed"
    plain = error_of("ingest", raw, *keys(folder), "--out", folder / "no", *SHAPE, "--patch", 2)
    assert plain.endswith("--patch is for domains of the scheme more-frame, this one is of more: leave it out")
    size = error_of("ingest", raw, *keys(mixed), "--out", mixed / "no", "--size", 15)
    assert "images of 15 x 15 are not made of patches of 2 x 2" in size
    gaps = error_of("ingest", raw, *keys(mixed), "--out", mixed / "no", *SHAPE, "--gaps", "encrypted")
    assert "does not encrypt time gaps" in gaps
    assert not (mixed / "no").exists()


def test_a_site_that_joins_needs_no_evaluation_key(folder: Path, tmp_path: Path):
    """Its dataset and its domain fit with the at-rest key only; what fails is something else."""
    mixed = folder / "mixed"
    site("ingest", folder / "raw" / "hospital-1", *keys(mixed), "--out", tmp_path / "sealed", *SHAPE)
    site("policy", "--dataset", tmp_path / "sealed", "--out", tmp_path / "site.yaml")
    given = ("--dataset", tmp_path / "sealed", "--policy", tmp_path / "site.yaml", *keys(mixed))
    nowhere = ("--superlink", "127.0.0.1:1", "--ca", tmp_path / "ca.pem", "--identity", tmp_path / "identity")
    findings = json.loads(site("doctor", *nowhere, *given, "--json", check=1).stdout)
    found = {finding["check"]: finding["status"] for finding in findings}
    assert [found[check] for check in ("dataset", "evaluation key", "domain", "one site", "policy")] == ["ok"] * 5
    assert found["node key"] == found["CA certificate"] == found["coordinator"] == "FAIL"
