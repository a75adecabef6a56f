"""The domain of tiny masked rounds, whose sites `simulations.played_site` plays."""

from members import founded

from fedpp.keys.domain import KeyDomain
from fedpp.learning.global_state import GlobalState

DOMAIN = founded()


def opened(sealed: bytes, domain: KeyDomain = DOMAIN) -> GlobalState:
    """Return the state in a sealed file."""
    told, records = domain.envelope().open([sealed])
    assert told
    return GlobalState.from_bytes(b"".join(records))
