"""`fedpp-site policy`, `review` and `approve`: the hospital decides which code of the coordinator's may run."""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import fedpp
from fedpp.cli import add_json, note, path
from fedpp.errors import ConfigError
from fedpp.texts import printable
from fedpp.values import is_hex

if TYPE_CHECKING:
    from ..node.app_bundle import Bundle

# Folder of each package of a bundle in an installed fedpp, or in a checkout.
_INSTALLED = {"fedpp": Path(fedpp.__file__).parent, "sites": Path(__file__).parents[1]}
_SAME, _DIFFERENT, _UNKNOWN = "as installed", "DIFFERS from the installed", "not installed"


def add_policy_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `policy`."""
    to.add_argument("--dataset", type=path, required=True, help="the one encrypted dataset that may be used")
    to.add_argument("--out", type=path, required=True, help="new file, site.yaml")


def policy(*, dataset: Path, out: Path) -> int:
    """Write a site's first policy: one dataset, no bundle approved yet."""
    from fedpp.config.site_policy import EvaluationLimits, starting_text
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.files import create_exclusively

    opened = EncryptedDataset.open(dataset)
    fingerprint = opened.manifest.fingerprint
    try:
        create_exclusively(out, starting_text(fingerprint).encode(), mode=0o644)
    except FileExistsError:
        raise FileExistsError(f"{out} is there already: choose another --out, or edit it") from None
    print(printable(f"{out} allows dataset {fingerprint[:16]} and no bundle: `fedpp-site approve` adds one"))
    if few := EvaluationLimits().warning(opened.patients()):
        note(few)
    return 0


def add_review_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `review`."""
    to.add_argument("bundle", type=path, help="file BUNDLE.fab, or with --identity the hash of a refused bundle")
    to.add_argument("--identity", type=path, help="identity folder of the joined site, which keeps refused bundles")
    to.add_argument("--out", type=path, required=True, help="new folder for the files of the bundle")
    add_json(to)


def review(*, bundle: Path, identity: Path | None, out: Path, as_json: bool) -> int:
    """Unpack a bundle for reading, and compare its files with those of the installed fedpp."""
    from ..node.app_bundle import Bundle

    opened = Bundle.load(_file(bundle, identity))
    files = opened.files()
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        whole = Path(folder) / "bundle"
        whole.mkdir()
        opened.unpack(whole)
        whole.rename(out)
    found = [
        {
            "file": name,
            "bytes": len(content),
            "sha256": sha256(content).hexdigest(),
            "installed": _compared(name, content),
        }
        for name, content in sorted(files.items())
    ]
    shadows = _shadows(opened)
    if as_json:
        print(json.dumps({"bundle": opened.hash, "folder": str(out), "files": found, "shadows": shadows}))
        return 0
    print(f"bundle {opened.hash}")
    for file in found:
        print(f"{file['sha256']}  {file['bytes']:>8}  {file['file']}  ({file['installed']})")
    counts = Counter(file["installed"] for file in found)
    new_code = sum(file["installed"] == _UNKNOWN and str(file["file"]).endswith(".py") for file in found)
    for line in _warnings(shadows):
        print(line)
    print(
        printable(
            f"{len(found)} files in {out}: {counts[_SAME]} as installed, {counts[_DIFFERENT]} that DIFFER from the "
            f"installed fedpp's, {counts[_UNKNOWN]} that it does not have, {new_code} of these code: read all but the "
            "first"
        )
    )
    return 0


def add_approve_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `approve`."""
    to.add_argument("approved", metavar="BUNDLE", type=path, help="file BUNDLE.fab, or its hash, or a dataset's folder")
    to.add_argument("--policy", type=path, required=True, help="site.yaml")
    to.add_argument("--remove", action="store_true", help="withdraw the approval")


def approve(*, approved: Path, policy: Path, remove: bool) -> int:
    """Add a bundle that may run, or an encrypted dataset that may be used, to the policy, or withdraw it."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    from ..node.app_bundle import Bundle
    from ..node.policy_file import set_listed

    listed: Literal["bundles", "datasets"]
    if approved.is_dir():
        kind, listed, item = "dataset", "datasets", EncryptedDataset.open(approved).manifest.fingerprint
        done = "may not be used any more" if remove else "may be used"
    else:
        kind, listed, item = "bundle", "bundles", str(approved)
        done = "may not run here any more" if remove else "may run here"
        if not is_hex(item):
            bundle = Bundle.load(approved)
            for line in _warnings(_shadows(bundle)):  # refuses what is no bundle
                print(line, file=sys.stderr)
            item = bundle.hash
    if set_listed(policy, listed, item, approved=not remove):
        print(printable(f"{kind} {item} {done}: {policy}"))
    else:
        print(printable(f"nothing to do: {kind} {item} is {'not in' if remove else 'already in'} {policy}"))
    return 0


def _shadows(bundle: "Bundle") -> dict[str, list[str]]:
    """Return the bundle's modules that replace those of installed distributions, with the distributions' names.

    Not fedpp's own, whose files a review compares.
    """
    from importlib.metadata import packages_distributions

    installed = packages_distributions()
    return {name: sorted(set(installed[name])) for name in sorted(bundle.modules() & set(installed) - set(_INSTALLED))}


def _warnings(shadows: Mapping[str, list[str]]) -> list[str]:
    return [
        f"WARNING: the bundle's {name} stands in for that of the installed {', '.join(installed)}, "
        "wherever its code imports it: approve it only if you know why"
        for name, installed in shadows.items()
    ]


def _file(bundle: Path, identity: Path | None) -> Path:
    """Return the bundle's file, which may be named by the hash of one that was refused and kept."""
    from ..node.app_bundle import SUFFIX
    from ..node.node_identity import REFUSED

    if not is_hex(str(bundle)):
        return bundle
    if identity is None:
        raise ConfigError("a bundle's hash does not locate its file: add --identity, whose refused bundles are kept")
    return identity / REFUSED / f"{bundle}{SUFFIX}"


def _compared(name: str, content: bytes) -> str:
    """Return whether a file of a bundle is the same as the installed one of its name."""
    package, _, rest = name.partition("/")
    installed = _INSTALLED.get(package, Path(os.devnull)) / rest
    if package not in _INSTALLED or not installed.is_file():
        return _UNKNOWN
    return _SAME if installed.read_bytes() == content else _DIFFERENT
