"""`fedpp-site identity`, `join` and `doctor`: connect this site's SuperNode to a coordinator."""

import argparse
import json
import os
from pathlib import Path

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


def join(
    *,
    superlink: str,
    ca: Path,
    identity: Path,
    dataset: Path,
    evaluation_key: Path | None,
    policy: Path,
    vault: str | None,
    domain: Path | None,
    passphrase: PassphraseSource,
) -> int:
    """Check the site, and run its SuperNode until SIGTERM or Ctrl-C."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our one line reports what gRPC's lines would
    from ..node.join import join as run
    from ..node.trial_vault import TrialVault

    site = _site(dataset, evaluation_key, policy, identity, vault, domain, passphrase)
    own = None if domain is None else TrialVault(domain.resolve(), passphrase.file, passphrase.descriptor)
    return run(superlink, ca, identity, site, own)


def add_doctor_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    add_join_arguments(to)
    to.add_argument("--deep", action="store_true", help="also read every byte of the dataset")
    add_json(to)


def doctor(
    *,
    superlink: str,
    ca: Path,
    identity: Path,
    dataset: Path,
    evaluation_key: Path | None,
    policy: Path,
    vault: str | None,
    domain: Path | None,
    passphrase: PassphraseSource,
    deep: bool,
    as_json: bool,
) -> int:
    """Check keys, certificates, coordinator, clock, vault, dataset and policy before `join`."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ..node.doctor import examine

    site = _site(dataset, evaluation_key, policy, identity, vault, domain, passphrase)
    results = []
    for result in examine(superlink, ca, identity, site, domain=domain, deep=deep):
        results.append(result)
        if not as_json:
            print(printable(f"{result.status:4}  {result.check}: {result.message}"), flush=True)
    if as_json:
        print(json.dumps([{"check": each.check, "status": each.status, "message": each.message} for each in results]))
    return 1 if any(each.status == "FAIL" for each in results) else 0


def _site(
    dataset: Path,
    evaluation_key: Path | None,
    policy: Path,
    identity: Path,
    vault: str | None,
    domain: Path | None,
    passphrase: PassphraseSource,
) -> SiteConfig:
    """Return the site's configuration; raise `ConfigError` for arguments that contradict each other."""
    key = evaluation_key
    if vault is not None and passphrase != PassphraseSource():
        raise ConfigError("a passphrase is for --domain, whose vault `join` starts: leave it out with --vault")
    if key is None and domain is None:
        raise ConfigError("--evaluation-key is missing: name the trainer's copy of domain.eval")
    if key is None and domain is not None:
        from fedpp.keys.key_store import EVALUATION_KEY

        key = domain / EVALUATION_KEY
    paths = [path.resolve() for path in (dataset, key, policy) if path is not None]
    return SiteConfig(paths[0], paths[1], vault or "", paths[2], identity.resolve())
