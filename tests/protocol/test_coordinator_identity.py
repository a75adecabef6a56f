"""The coordinator's identity: one form of each name, and the names that a run's statements may hold."""

from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from coordinator.operator.coordinator_certificates import ensure
from fedpp.errors import FederationError
from fedpp.protocol.coordinator_identity import CoordinatorIdentity, CoordinatorNames, canonical_host, is_host

ONE, OTHER = "1a" * 32, "2b" * 32


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Hub.Example.org", "hub.example.org"),
        ("hub.example.org.", "hub.example.org"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
    ],
)
def test_a_name_has_one_form(name: str, form: str):
    """Case, a last dot and the ways to write an IPv6 address make no other coordinator."""
    assert canonical_host(name) == form
    assert is_host(form)


@given(st.text(max_size=300))
def test_only_hosts_are_names(text: str):
    """A text with spaces, line breaks, capitals or signs, or a long one, is no name."""
    if is_host(text):
        assert len(text) <= 253
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.:_*")


def test_the_authority_is_its_certificate_s_fingerprint(tmp_path: Path):
    """It is the SHA-256 that `openssl x509 -fingerprint -sha256` prints, and returns from its text."""
    certificate = x509.load_pem_x509_certificate(ensure(tmp_path / "tls", []).ca.read_bytes())
    known_as = CoordinatorIdentity.of_certificate(certificate, "HUB")
    assert known_as == CoordinatorIdentity(sha256(certificate.public_bytes(Encoding.DER)).hexdigest(), "hub")
    assert CoordinatorIdentity.from_json(known_as.to_json()) == known_as


@pytest.mark.parametrize(
    ("known_as", "known"),
    [
        (("hub.example.org", ONE), True),
        (("hub.example.org", OTHER), True),
        (("hub.example.org", "3c" * 32), False),
        (("x.wild.example", ONE), True),
        (("wild.example", ONE), False),
        (("x.y.wild.example", ONE), False),
        (("example.org", ONE), False),
    ],
)
def test_a_coordinator_knows_its_names(known_as: tuple[str, str], known: bool):
    """Any of its names under any of its authorities is its own; a wildcard stands for one label."""
    names = CoordinatorNames((ONE, OTHER), ("hub.example.org", "*.wild.example"))
    if known:
        names.require("East", CoordinatorIdentity(known_as[1], known_as[0]))
    else:
        with pytest.raises(FederationError, match=r"^East knows the coordinator as .* statement was replayed"):
            names.require("East", CoordinatorIdentity(known_as[1], known_as[0]))
