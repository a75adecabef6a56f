"""`fedpp-site policy | review | approve`: the hospital decides which code of the coordinator's may run."""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import packages_distributions
from pathlib import Path

import fedpp
from fedpp.config.site_policy import starting_text
from fedpp.errors import ConfigError
from fedpp.files import create_exclusively
from fedpp.values import is_hex

from ..node.app_bundle import SUFFIX, Bundle
from ..node.node_identity import REFUSED
from ..node.policy_file import set_listed

# Where each folder of a bundle lies in an installed fedpp, or in a checkout.
_INSTALLED = {"fedpp": Path(fedpp.__file__).parent, "sites": Path(__file__).parents[1]}
_SAME, _DIFFERENT, _UNKNOWN = "as installed", "DIFFERS from the installed", "not installed"


def policy(options: argparse.Namespace) -> int:
    """Write a site's first policy: one dataset, no bundle approved yet."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    fingerprint = EncryptedDataset.open(options.dataset).manifest.fingerprint
    try:
        create_exclusively(options.out, starting_text(fingerprint).encode(), mode=0o644)
    except FileExistsError:
        raise FileExistsError(f"{options.out} is there already: choose another --out, or edit it") from None
    print(f"{options.out} allows dataset {fingerprint[:16]} and no bundle: `fedpp-site approve` adds one")
    return 0


def review(options: argparse.Namespace) -> int:
    """Unpack a bundle for reading, and tell how its files differ from the installed fedpp's."""
    bundle = Bundle.load(_file(options))
    files = bundle.files()
    if options.out.exists():
        raise ConfigError(f"{options.out} is there already: choose another --out")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.out.name}.", dir=options.out.parent) as folder:
        whole = Path(folder) / "bundle"
        whole.mkdir()
        bundle.unpack(whole)
        whole.rename(options.out)
    found = [
        {
            "file": name,
            "bytes": len(content),
            "sha256": sha256(content).hexdigest(),
            "installed": _compared(name, content),
        }
        for name, content in sorted(files.items())
    ]
    shadows = _shadows(bundle)
    if options.json:
        print(json.dumps({"bundle": bundle.hash, "folder": str(options.out), "files": found, "shadows": shadows}))
        return 0
    print(f"bundle {bundle.hash}")
    for file in found:
        print(f"{file['sha256']}  {file['bytes']:>8}  {file['file']}  ({file['installed']})")
    counts = Counter(file["installed"] for file in found)
    new_code = sum(file["installed"] == _UNKNOWN and str(file["file"]).endswith(".py") for file in found)
    for line in _warnings(shadows):
        print(line)
    print(
        f"{len(found)} files in {options.out}: {counts[_SAME]} as installed, {counts[_DIFFERENT]} that DIFFER from the "
        f"installed fedpp's, {counts[_UNKNOWN]} that it does not have, {new_code} of these code: read all but the first"
    )
    return 0


def approve(options: argparse.Namespace) -> int:
    """Add a bundle that may run, or an encrypted dataset that may be used, to the policy, or withdraw it."""
    if options.bundle.is_dir():
        return _approve_dataset(options)
    if is_hex(str(options.bundle)):
        bundle = str(options.bundle)
    else:
        file = Bundle.load(options.bundle)
        for line in _warnings(_shadows(file)):  # refuses what is no bundle
            print(line, file=sys.stderr)
        bundle = file.hash
    if set_listed(options.policy, "bundles", bundle, approved=not options.remove):
        print(f"bundle {bundle} {'may not run here any more' if options.remove else 'may run here'}: {options.policy}")
    else:
        print(f"nothing to do: bundle {bundle} is {'not in' if options.remove else 'already in'} {options.policy}")
    return 0


def _approve_dataset(options: argparse.Namespace) -> int:
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    dataset = EncryptedDataset.open(options.bundle).manifest.fingerprint
    if set_listed(options.policy, "datasets", dataset, approved=not options.remove):
        print(f"dataset {dataset} {'may not be used any more' if options.remove else 'may be used'}: {options.policy}")
    else:
        listed = "not in" if options.remove else "already in"
        print(f"nothing to do: dataset {dataset} is {listed} {options.policy}")
    return 0


def _shadows(bundle: Bundle) -> dict[str, list[str]]:
    """Return the bundle's modules that stand in for those of installed distributions, with the distributions' names.

    Not fedpp's own, whose files a review compares.
    """
    installed = packages_distributions()
    return {name: sorted(set(installed[name])) for name in sorted(bundle.modules() & set(installed) - set(_INSTALLED))}


def _warnings(shadows: Mapping[str, list[str]]) -> list[str]:
    return [
        f"WARNING: the bundle's {name} stands in for that of the installed {', '.join(installed)}, "
        "wherever its code imports it: approve it only if you know why"
        for name, installed in shadows.items()
    ]


def _file(options: argparse.Namespace) -> Path:
    """Return the bundle's file, which may be named by the hash of one that was refused and kept."""
    if not is_hex(str(options.bundle)):
        return Path(options.bundle)
    if options.identity is None:
        raise ConfigError(
            "a bundle's hash alone does not say where it lies: add --identity, whose refused bundles are kept"
        )
    return Path(options.identity) / REFUSED / f"{options.bundle}{SUFFIX}"


def _compared(name: str, content: bytes) -> str:
    """Tell whether a file of a bundle is the installed one of its name."""
    package, _, rest = name.partition("/")
    installed = _INSTALLED.get(package, Path(os.devnull)) / rest
    if package not in _INSTALLED or not installed.is_file():
        return _UNKNOWN
    return _SAME if installed.read_bytes() == content else _DIFFERENT
