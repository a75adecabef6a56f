"""The checkout's app bundle: what `run` submits, and what each site approves by its hash.

Flower builds it from the files on the disk, sorted, stored without compression, under one fixed date: so equal files
give equal bytes on every machine, and no zip library has a say in them.
"""

import argparse
from hashlib import sha256
from pathlib import Path

from fedpp.errors import FederationError
from fedpp.files import create_exclusively

CHECKOUT = Path(__file__).parents[1]


def built() -> bytes:
    """Return the bundle as `flwr run` builds it; raise `FederationError` if Flower cannot build one."""
    from flwr.cli.build import build_fab_from_disk

    try:
        return build_fab_from_disk(CHECKOUT)
    except ValueError as error:
        raise FederationError(f"this checkout makes no bundle: {' '.join(str(error).split())}") from None


def bundle(options: argparse.Namespace) -> int:
    """Print the SHA-256 of the bundle that `run` submits, for sites to compare and approve."""
    content = built()
    if options.out is not None:
        try:
            create_exclusively(options.out, content, mode=0o644)
        except FileExistsError:
            raise FileExistsError(f"{options.out} is there already: choose another --out") from None
    print(sha256(content).hexdigest())
    return 0
