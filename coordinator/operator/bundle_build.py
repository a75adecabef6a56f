"""App bundle of the checkout: `run` submits it, and each site approves it by its hash.

Flower builds it from the files on the disk: sorted, without compression, with one fixed date. So equal files give equal
bytes on every machine, whatever its zip library.
"""

import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

from fedpp.errors import FederationError
from fedpp.files import create_exclusively

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("fedpp", "sites", "coordinator", "pyproject.toml")


def built(sources: Path | None = None) -> bytes:
    """Return the bundle of a copy of the sources, as `flwr run` builds it, by default of a new copy.

    In the checkout itself Flower would read every file, those of the environment too. Raises `FederationError` if
    Flower cannot build a bundle.
    """
    from flwr.cli.build import build_fab_from_disk

    if sources is None:
        with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
            copy_sources(Path(folder))
            return built(Path(folder))
    try:
        return build_fab_from_disk(sources)
    except ValueError as error:
        raise FederationError(f"this checkout makes no bundle: {' '.join(str(error).split())}") from None


def copy_sources(to: Path) -> None:
    """Copy the sources of a bundle, so that a run resumed after a week runs the code that the sites approved."""
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / name, to / name)


def bundle(out: Path | None) -> int:
    """Print the SHA-256 of the bundle that `run` submits, for sites to compare and approve."""
    content = built()
    if out is not None:
        try:
            create_exclusively(out, content, mode=0o644)
        except FileExistsError:
            raise FileExistsError(f"{out} is there already: choose another --out") from None
    print(sha256(content).hexdigest())
    return 0
