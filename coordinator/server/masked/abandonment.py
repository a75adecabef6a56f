"""Abandonment: the members of a contract that the coordinator gives up are asked to leave it.

A vault has few unfinished contracts at a time: one that never starts, since a member refused it, would block others
until it expires. A member that does not reply now is asked again when the run is resumed.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import DEFAULT_TTL, Message, RecordDict
from flwr.serverapp import Grid

from coordinator.server.exchange import Exchange
from coordinator.server.run_state import RunState
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.run_contract import RunContract

ABANDON_SECONDS = 10.0  # for all replies; a stopped ServerApp has 20 s to end


@dataclass(frozen=True)
class GivenUp:
    """Contracts of a run that were given up, and the members that may still be in them, in `run/given-up`."""

    folder: RunState

    def contracts(self) -> dict[str, list[str]]:
        """Return the members that have not left, by the contract's digest."""
        path = self.folder.folder / "given-up"
        return dict(self.folder.read(path)[0]["contracts"]) if path.exists() else {}

    def add(self, contract: RunContract) -> None:
        """Record that a contract is given up, before any member is asked to leave it."""
        self._write({**self.contracts(), contract.digest: list(contract.names)})

    def restart(self, contracts: Iterable[RunContract]) -> None:
        """Record these alone, of a run that is rebuilt from what its sites know."""
        self._write({contract.digest: list(contract.names) for contract in contracts})

    def ask(self, grid: Grid, nodes: Mapping[str, int]) -> None:
        """Ask the members, which are at these nodes, to leave; take the replies that come within `ABANDON_SECONDS`."""
        deadline = time.monotonic() + ABANDON_SECONDS
        for digest, sites in self.contracts().items():
            asked = {nodes[site]: site for site in sites if site in nodes}
            left = _replied(grid, digest, asked, max(0.0, deadline - time.monotonic())) if asked else set()
            if left:
                self._write({**self.contracts(), digest: [site for site in sites if site not in left]})

    def _write(self, contracts: Mapping[str, list[str]]) -> None:
        self.folder.write(self.folder.folder / "given-up", {"contracts": dict(contracts)})


def _replied(grid: Grid, digest: str, asked: Mapping[int, str], seconds: float) -> set[str]:
    """Return the sites that replied: who refuses has not accepted the contract, or will not leave it."""
    content = RecordDict({messages.CONFIG: masked_messages.ContractRequest(digest).to_record()})
    exchange, replied = Exchange(grid, lambda: None), set()
    exchange.send(
        [
            Message(content, dst_node_id=node, message_type=masked_messages.ABANDON, ttl=DEFAULT_TTL)
            for node in sorted(asked)
        ]
    )
    for node, reply in exchange.replies(seconds):
        if reply is not None and not messages.is_lost(reply) and not messages.is_offline(reply):
            replied.add(asked[node])
    return replied
