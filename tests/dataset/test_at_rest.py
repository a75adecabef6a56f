"""Encryption at rest: records come back in their own place only."""

import pytest

from fedpp.dataset.at_rest import TAG_BYTES, AtRestKey
from fedpp.errors import KeyFileError
from fedpp.keys.key_domain import KeyDomain

SALT = bytes(16)


def test_unseal_inverts_seal(domain: KeyDomain):
    """A record comes back, 16 bytes shorter, and is not readable in its sealed form."""
    sealer = domain.at_rest_key().sealer(SALT)
    sealed = sealer.seal("frames", 3, b"a record of rows")
    assert sealer.unseal("frames", 3, sealed) == b"a record of rows"
    assert len(sealed) == 16 + TAG_BYTES
    assert b"record" not in sealed


def test_a_record_is_bound_to_its_place(domain: KeyDomain):
    """Another index, kind, dataset or domain, a flipped bit or a missing byte: the record is refused."""
    sealer = domain.at_rest_key().sealer(SALT)
    sealed = sealer.seal("frames", 3, b"record")
    assert sealer.unseal("frames", 4, sealed) is None
    assert sealer.unseal("labels", 3, sealed) is None
    assert domain.at_rest_key().sealer(bytes(15) + b"\1").unseal("frames", 3, sealed) is None
    assert KeyDomain.of_secret(bytes(32), n=2).at_rest_key().sealer(SALT).unseal("frames", 3, sealed) is None
    assert sealer.unseal("frames", 3, sealed[:-1]) is None
    for position in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[position] ^= 1
        assert sealer.unseal("frames", 3, bytes(flipped)) is None


def test_only_the_key_makes_a_manifests_tag(domain: KeyDomain):
    """The tag changes with the manifest, the dataset's salt and the key."""
    key = domain.at_rest_key()
    other = KeyDomain.of_secret(bytes(32), n=2).at_rest_key()
    tags = {
        key.sealer(SALT).tag(b"a"),
        key.sealer(SALT).tag(b"b"),
        key.sealer(b"1" * 16).tag(b"a"),
        other.sealer(SALT).tag(b"a"),
    }
    assert len(tags) == 4
    assert key.sealer(SALT).tag(b"a") == domain.at_rest_key().sealer(SALT).tag(b"a")


def test_the_key_survives_its_file(tmp_path, domain: KeyDomain):
    """A saved key seals as before, has mode 0600 and is never overwritten; a damaged file is named."""
    key, path = domain.at_rest_key(), tmp_path / "trainer" / "domain.rest"
    key.save(path)
    assert AtRestKey.load(path).sealer(SALT).tag(b"x") == key.sealer(SALT).tag(b"x")
    assert AtRestKey.load(path).domain == domain.card().fingerprint
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        key.save(path)
    text = path.read_text()
    for damaged in (text.replace("key-1", "key-9"), text[:-3], text.replace('"key": "', '"key": "zz'), "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(KeyFileError):
            AtRestKey.load(path)
    with pytest.raises(KeyFileError, match="cannot read"):
        AtRestKey.load(tmp_path / "none")
    with pytest.raises(KeyFileError, match="32 bytes, got 3"):
        AtRestKey("d", b"abc")
