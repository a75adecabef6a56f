"""Checkpoints: sealed, complete, and of one domain."""

from pathlib import Path

import numpy as np
import pytest

from fedpp.errors import ModelError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import checkpoint
from fedpp.learning.checkpoint import Checkpoint

SETTINGS = {"seed": 3, "learning_rate": 0.1, "voting": False, "patience": None}


def saved(path: Path, domain: KeyDomain) -> Checkpoint:
    generator = np.random.default_rng(0)
    arrays = {"0000": generator.normal(size=(3, 4)), "0001": generator.normal(size=5).astype(np.float32)}
    arrays |= {"0002": np.array(7)}
    one = Checkpoint(SETTINGS, 4, (0.1 + 0.2, 1e-300), arrays)
    one.save(path, domain.at_rest_key())
    return one


@pytest.mark.parametrize("part", [2**26, 100])
def test_a_checkpoint_survives_its_file(part: int, tmp_path: Path, domain: KeyDomain, monkeypatch: pytest.MonkeyPatch):
    """Settings, epoch, losses and arrays are read as written, bit for bit, in one part and in many."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", part)
    one = saved(tmp_path / "c", domain)
    other = Checkpoint.load(tmp_path / "c", domain.at_rest_key())
    assert (other.settings, other.epoch, other.losses) == (one.settings, one.epoch, one.losses)
    assert {name: values.dtype for name, values in other.arrays.items()} == {
        name: values.dtype for name, values in one.arrays.items()
    }
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(other.arrays[name], values)


def test_the_file_reveals_nothing(tmp_path: Path, domain: KeyDomain):
    """The file contains no array's bytes and no setting's name; two files of one state share only the magic."""
    one = saved(tmp_path / "c", domain)
    content = (tmp_path / "c").read_bytes()
    assert all(values.tobytes()[:8] not in content for values in one.arrays.values())
    assert b"learning_rate" not in content
    saved(tmp_path / "d", domain)
    other = (tmp_path / "d").read_bytes()
    start = len(checkpoint.MAGIC)
    same = sum(a == b for a, b in zip(content[start:], other[start:], strict=True))
    assert same < 0.05 * len(content), "a salt was used twice"
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_every_changed_byte_is_found(tmp_path: Path, domain: KeyDomain):
    """A file with a byte changed, cut at any place, or longer by a byte is rejected in one line."""
    saved(tmp_path / "c", domain)
    content = (tmp_path / "c").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        for damaged in (bytes(changed), content[:place], content + b"x"):
            (tmp_path / "c").write_bytes(damaged)
            with pytest.raises(ModelError, match="damaged|no checkpoint"):
                Checkpoint.load(tmp_path / "c", domain.at_rest_key())


def test_another_domain_cannot_unseal_it(tmp_path: Path, domain: KeyDomain):
    """Another domain's key, and a missing file, raise ModelError."""
    saved(tmp_path / "c", domain)
    with pytest.raises(ModelError, match="another domain's at-rest key"):
        Checkpoint.load(tmp_path / "c", KeyDomain.of_secret(bytes(32), n=2).at_rest_key())
    with pytest.raises(ModelError, match="cannot read"):
        Checkpoint.load(tmp_path / "none", domain.at_rest_key())
