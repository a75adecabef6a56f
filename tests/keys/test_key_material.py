"""Key material: what is sealed under a key returns for its binding alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.key_material import seal, unseal

KEY, BOUND = bytes(range(32)), b"round 1"


@given(st.binary(max_size=64), st.binary(max_size=16))
def test_unseal_returns_what_seal_sealed(content: bytes, bound: bytes):
    """The law holds for every content and binding, and no two seals of one content are alike."""
    assert unseal(KEY, seal(KEY, content, bound), bound) == content
    assert seal(KEY, content, bound) != seal(KEY, content, bound)


def test_altered_cut_and_foreign_seals_are_refused():
    """Each byte counts, and so do key and binding; nothing is said of what is inside."""
    sealed = seal(KEY, b"secret", BOUND)
    altered = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    for other in (*altered, sealed[:-1], sealed[:12], b""):
        with pytest.raises(ValueError, match="does not fit|[Nn]once"):
            unseal(KEY, other, BOUND)
    for key, bound in ((bytes(32), BOUND), (KEY, b"round 2")):
        with pytest.raises(ValueError, match="does not fit"):
            unseal(key, sealed, bound)
