"""`fedpp-site keygen`: a domain of either scheme."""

import json
from pathlib import Path

import pytest
from hospital import error_of, site


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(("scheme", "n"), [("more", 2), ("more-frame", 1)])
def test_keygen_makes_a_domain_of_a_scheme(tmp_path: Path, passphrase: Path, scheme: str, n: int):
    """The card names the scheme and its slots; `domain.eval` is written and printed with `more` alone."""
    done = site("keygen", "--out", tmp_path / "new", "--passphrase-file", passphrase, "--scheme", scheme)
    card = json.loads(site("card", tmp_path / "new").stdout)
    assert (card["scheme"], card["n"]) == (scheme, n)
    has_key = scheme == "more"
    assert (tmp_path / "new" / "trainer" / "domain.eval").exists() == has_key
    assert ("domain.eval" in done.stdout) == has_key


def test_keygen_refuses_slots_that_a_scheme_has_not(tmp_path: Path, passphrase: Path):
    """The frame form has one slot: `-n 3` is refused, and nothing is written."""
    error = error_of(
        "keygen", "--out", tmp_path / "new", "--passphrase-file", passphrase, "--scheme", "more-frame", "-n", 3
    )
    assert "has one slot, got n = 3" in error
    assert not (tmp_path / "new").exists()
