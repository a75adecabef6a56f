"""The site's SuperNode: a process that calls the coordinator, and an executor that runs the bundle's ClientApp.

The only open port is a loopback port between SuperNode and our executor, which starts the ClientApp if the site's
policy allows it. The port is guarded by a secret of this run: with `--isolation subprocess` Flower would serve any
local user, and run any code. A SuperNode that ends by itself is restarted, unless a restart cannot help.
"""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fedpp.cli import note
from fedpp.config.run_config import SiteConfig, to_toml
from fedpp.errors import ConfigError, FederationError, UnreachableError
from fedpp.files import create_exclusively, lock_folder
from fedpp.processes import ProcessGroup, flower_environment, free_port

from .doctor import examine
from .executor import program, require_flower
from .node_identity import PRIVATE_KEY, REFUSED, SUPERNODE_LOG, create_identity
from .reachability import Coordinator
from .trial_vault import TrialVault

STEADY_SECONDS = 120.0  # a SuperNode that ran longer counts as working
MAX_TRIES = 8  # in a row, of SuperNodes that ran shorter
LONGEST_PAUSE = 60.0  # seconds before a restart


def join(superlink: str, ca: Path, identity: Path, site: SiteConfig, own_vault: TrialVault | None = None) -> int:
    """Run the SuperNode in the foreground until SIGINT, SIGTERM or SIGHUP; return the exit status.

    `superlink` is HOST:PORT, `ca` the coordinator's CA certificate. With `own_vault` the vault is started, too. Raises
    a `FedppError` for inputs that are missing or do not fit, `FederationError` if a restart cannot help.
    """
    _require_identity(identity)
    with _locked(identity):
        _require_checks(superlink, ca, identity, site, None if own_vault is None else own_vault.domain)
        require_flower()
        coordinator = Coordinator.parse(superlink, ca)
        site = replace(site, coordinator=coordinator.identity().to_json())
        if own_vault is None:
            with ProcessGroup({}) as outer:
                _Joined(coordinator, identity, site, outer).run()
        else:
            note(
                "vault and trainer are one user here, so code that the site lets run could read the vault's memory and "
                "keys: this is for trials"
            )
            with own_vault.started(site, identity) as (outer, address):
                _Joined(coordinator, identity, replace(site, vault=address), outer).run()
    return 0


@dataclass(frozen=True)
class _Joined:
    """A joined site: its SuperNodes, one after another."""

    coordinator: Coordinator
    identity: Path
    site: SiteConfig
    outer: ProcessGroup  # processes that outlive a SuperNode; receives the signals between two of them

    def run(self) -> None:
        """Run SuperNodes until a signal comes; raise `FederationError` where a restart cannot help."""
        log = self.identity / SUPERNODE_LOG
        if log.exists():
            log.rename(log.with_name(f"{SUPERNODE_LOG}.1"))
        tries, pause = 0, 0.0
        while not self.outer.stopped.wait(pause):
            started = time.monotonic()
            if self._run_one():
                return
            if not self.outer.running():
                raise FederationError("the vault ended by itself: its messages above say why")
            tries = 1 if time.monotonic() - started > STEADY_SECONDS else tries + 1
            if tries == MAX_TRIES:
                raise FederationError(
                    f"the SuperNode ended by itself {tries} times in a row: see {self.identity / SUPERNODE_LOG}"
                )
            self._require_trust()
            pause = min(2.0**tries, LONGEST_PAUSE)
            note(f"the SuperNode ended by itself: restarting in {pause:.0f} s")

    def _run_one(self) -> bool:
        """Run one SuperNode with its executor; return whether a signal ended it."""
        with tempfile.TemporaryDirectory(prefix="fedpp-") as private:
            secret, node, hopeless = (Path(private) / name for name in ("superexec.secret", "node.toml", "hopeless"))
            create_exclusively(secret, secrets.token_bytes(32))
            create_exclusively(node, to_toml(self.site.to_mapping()).encode())
            runtime = f"127.0.0.1:{free_port()}"
            identity = self.identity.resolve()
            with ProcessGroup(flower_environment(identity / "flwr")) as group:
                group.start(
                    [
                        *(*program("node.supernode_process"), "--identity", str(identity), "--hopeless", str(hopeless)),
                        *("--coordinator", self.site.coordinator),
                        *("--", _flower_supernode(), "--superlink", str(self.coordinator)),
                        *("--root-certificates", str(self.coordinator.ca)),
                        *("--auth-supernode-private-key", str(self.identity / PRIVATE_KEY)),
                        *("--node-config", str(node)),
                        *("--host", "127.0.0.1", "--port", runtime.rpartition(":")[2]),
                        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
                    ]
                )
                group.start(
                    [
                        *(*program("node.executor"), "--runtime", runtime, "--secret", str(secret), "--work", private),
                        *("--policy", str(self.site.policy), "--refused", str(identity / REFUSED)),
                    ]
                )
                note(f"SuperNode started; it logs to {self.identity / SUPERNODE_LOG}")
                while group.running() and self.outer.running() and not group.stopped.wait(0.2):
                    pass
            if hopeless.exists() and not group.stopped.is_set():
                raise FederationError(hopeless.read_text())
        return group.stopped.is_set()

    def _require_trust(self) -> None:
        """Raise `FederationError` if another server answers as the coordinator; an offline one may come back."""
        with suppress(UnreachableError):
            self.coordinator.certificate_end()


def _require_identity(identity: Path) -> None:
    """Create the node's key if there is none; raise `FederationError` then, since it must be enrolled first."""
    if (identity / PRIVATE_KEY).exists():
        return
    public = create_identity(identity)
    raise FederationError(
        f"a key was created for this site's node: give {public} to the coordinator for `python -m coordinator "
        "enrol`, then join again"
    )


@contextmanager
def _locked(identity: Path) -> Iterator[None]:
    """Lock the identity for this process alone."""
    lock = lock_folder(identity)
    if lock is None:
        raise ConfigError(
            f"another `fedpp-site join` uses {identity} already: stop it, or give this one an identity of its own"
        )
    try:
        yield
    finally:
        os.close(lock)


def _require_checks(superlink: str, ca: Path, identity: Path, site: SiteConfig, domain: Path | None) -> None:
    """Run the doctor's quick checks; raise the first error, unless the coordinator is offline."""
    for result in examine(superlink, ca, identity, site, domain=domain):
        if isinstance(result.error, UnreachableError):
            note(f"waiting for the coordinator: {result.message}")
        elif result.error is not None:
            raise result.error
        elif result.status == "warn":
            note(result.message)


def _flower_supernode() -> str:
    """Return the path of Flower's program, which names the process."""
    return str(Path(sys.executable).with_name("flower-supernode"))
