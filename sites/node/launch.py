"""Start of a launcher by the executor, which loads nothing else of it."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import fedpp

ROOT = Path(fedpp.__file__).parents[1]  # the checkout, or site-packages; this package's own folder does not tell which


@dataclass(frozen=True)
class Launch:
    """Arguments of a launcher."""

    runtime: str  # HOST:PORT of the SuperNode
    parent: int  # the executor's process, with which it ends
    policy: Path
    refused: Path  # folder for bundles that the site has not approved
    work: Path

    def run(self, token: str) -> None:
        """Run the task of this token, and exit with its status."""
        import_module(".launcher", __package__).main(self, token)
