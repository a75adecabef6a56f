"""Record of a site's node in its identity's folder: its number at SuperLink, and the coordinator that it belongs to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from fedpp.files import replace

NODE = "node.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class NodeRecord:
    """SuperLink's number for this identity, where its SuperNode runs, if it does, and the coordinator."""

    number: int
    running: str = ""  # `place_of` the identity of a running SuperNode, or of one that was killed
    coordinator: str = ""  # CoordinatorIdentity, JSON; empty in records of fedpp before protocol 2

    def save(self, identity: Path) -> None:
        """Write the record into the identity's folder."""
        replace(identity / NODE, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, identity: Path) -> Self | None:
        """Read the record; return None before the first activation, and for a damaged file."""
        try:
            values = json.loads((identity / NODE).read_bytes())
            return cls(int(values["number"]), str(values["running"]), str(values.get("coordinator", "")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def place_of(identity: Path) -> str:
    """Return a text that differs for every copy of the folder, on any machine, and after each restart of the machine.

    So a process that holds the folder's lock knows that a SuperNode recorded at this place has ended.
    """
    status = identity.stat()
    return f"{status.st_dev}:{status.st_ino} {_BOOT.read_text().strip()}"
