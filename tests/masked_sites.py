"""The domain of tiny masked rounds, whose sites `simulations.benchmarks.simulated_client` plays."""

from members import founded

from fedpp.aggregation.global_state import GlobalState
from fedpp.keys.key_domain import KeyDomain

DOMAIN = founded()


def opened(sealed: bytes, domain: KeyDomain = DOMAIN) -> GlobalState:
    """Return the state in a sealed file."""
    text, records = domain.state_sealer().unseal([sealed])
    assert text
    return GlobalState.from_bytes(b"".join(records))
