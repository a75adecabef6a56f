"""`fedpp-site identity`, `join` and `doctor`: connect this site's SuperNode to a coordinator."""

import argparse
import json
import os
from pathlib import Path
from typing import TypedDict, Unpack

from fedpp.cli import add_json, path
from fedpp.config.run_config import SiteConfig
from fedpp.errors import ConfigError
from fedpp.texts import printable

from .opening import PassphraseSource, add_passphrase


def add_identity_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `identity`."""
    to.add_argument("--out", type=path, required=True, help="new folder for the node's key pair")


def identity(*, out: Path) -> int:
    """Create the key pair by which the SuperLink authenticates this site's node."""
    from ..node.node_identity import create_identity

    public = create_identity(out)
    print(printable(f"give {public} to the coordinator for `python -m coordinator enrol`"))
    return 0


def add_join_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `join`."""
    to.add_argument("--superlink", required=True, help="HOST:PORT of the coordinator")
    to.add_argument("--ca", type=path, required=True, help="CA certificate of the coordinator")
    to.add_argument("--identity", type=path, required=True, help="folder of the node's key; `join` makes a missing one")
    to.add_argument("--dataset", type=path, required=True, help="encrypted dataset")
    to.add_argument("--evaluation-key", type=path, help="domain.eval of the trainer (default: that in --domain)")
    to.add_argument("--policy", type=path, required=True, help="site.yaml from `policy`: what may run here")
    vault = to.add_mutually_exclusive_group(required=True)
    vault.add_argument("--vault", help="vault of the secret zone: unix:/path/to/vault.sock, or HOST:PORT,tls=FOLDER")
    vault.add_argument(
        "--domain", type=path, help="for trials: domain folder whose vault is started here, as this user"
    )
    add_passphrase(to)


class SiteOptions(TypedDict):
    """Options of `join` and `doctor` that describe the site."""

    identity: Path
    dataset: Path
    evaluation_key: Path | None
    policy: Path
    vault: str | None
    domain: Path | None
    passphrase: PassphraseSource


def join(*, superlink: str, ca: Path, **site: Unpack[SiteOptions]) -> int:
    """Check the site, and run its SuperNode until SIGTERM or Ctrl-C."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our one line reports what gRPC's lines would
    from ..node.join import join as run
    from ..node.trial_vault import TrialVault

    domain, passphrase = site["domain"], site["passphrase"]
    own = None if domain is None else TrialVault(domain.resolve(), passphrase.file, passphrase.descriptor)
    return run(superlink, ca, site["identity"], _configuration(**site), own)


def add_doctor_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    add_join_arguments(to)
    to.add_argument("--deep", action="store_true", help="also read every byte of the dataset")
    add_json(to)


def doctor(*, superlink: str, ca: Path, deep: bool, as_json: bool, **site: Unpack[SiteOptions]) -> int:
    """Check keys, certificates, coordinator, clock, vault, dataset and policy before `join`."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ..node.doctor import examine

    results = []
    configuration = _configuration(**site)
    for result in examine(superlink, ca, site["identity"], configuration, domain=site["domain"], deep=deep):
        results.append(result)
        if not as_json:
            print(printable(f"{result.status:4}  {result.check}: {result.message}"), flush=True)
    if as_json:
        print(json.dumps([{"check": each.check, "status": each.status, "message": each.message} for each in results]))
    return 1 if any(each.status == "FAIL" for each in results) else 0


def _configuration(**site: Unpack[SiteOptions]) -> SiteConfig:
    """Return the site's configuration; raise `ConfigError` for options that contradict each other."""
    key, domain = site["evaluation_key"], site["domain"]
    if site["vault"] is not None and site["passphrase"] != PassphraseSource():
        raise ConfigError("a passphrase is for --domain, whose vault `join` starts: leave it out with --vault")
    if key is None:
        if domain is None:
            raise ConfigError("--evaluation-key is missing: name the trainer's copy of domain.eval")
        from fedpp.keys.key_store import EVALUATION_KEY

        key = domain / EVALUATION_KEY
    dataset, key, policy, work = (path.resolve() for path in (site["dataset"], key, site["policy"], site["identity"]))
    return SiteConfig(dataset, key, site["vault"] or "", policy, work)
