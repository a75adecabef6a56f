"""Trial vault: a vault that `fedpp-site join` starts beside the trainer, as the same user.

Approved code could then read the vault's memory, and with it the domain secret (docs/explanation/threats.md).
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedpp.config.run_config import SiteConfig
from fedpp.errors import FederationError, VaultError
from fedpp.processes import ProcessGroup
from fedpp.vault_api.vault_channel import SCHEME, require_short
from fedpp.vault_api.vault_client import VaultClient

from .executor import program

AUDIT_LOG = "audit.log"  # beside the node's key
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class TrialVault:
    """The vault's domain folder, and the source of its passphrase: a file, a descriptor, or else the terminal."""

    domain: Path
    passphrase_file: Path | None = None
    passphrase_fd: int | None = None

    @contextmanager
    def started(self, site: SiteConfig, identity: Path) -> Iterator[tuple[ProcessGroup, str]]:
        """Start the vault; yield its process group and its address once it replies or a signal came.

        Raises `FederationError` if the vault ends before it replies.
        """
        with (
            self._passphrase() as passphrase,
            tempfile.TemporaryDirectory(prefix="fedpp-") as private,  # mode 0700
            ProcessGroup({}) as group,
        ):
            address = f"{SCHEME}{private}/vault.sock"
            require_short(Path(private, "vault.sock"))  # before a process starts
            group.start(
                [
                    *(*program("cli.site_cli"), "vault", "--domain", str(self.domain)),
                    *("--passphrase-file", str(passphrase)),
                    *("--dataset", str(site.dataset), "--address", address, "--policy", str(site.policy)),
                    *("--audit-log", str(identity / AUDIT_LOG)),
                ]
            )
            while group.running() and not _replies(address) and not group.stopped.wait(POLL_SECONDS):
                pass
            if not group.running() and not group.stopped.is_set():
                raise FederationError("the vault ended before it answered: its messages above say why")
            yield group, address

    @contextmanager
    def _passphrase(self) -> Iterator[Path]:
        """Yield a path from which only processes of this user read the passphrase, while this process lives.

        It is in no arguments and no environment: a descriptor is read through /proc of this process.
        """
        if self.passphrase_file is not None:
            yield self.passphrase_file.resolve()
        elif self.passphrase_fd is not None:
            yield _held(self.passphrase_fd)
        else:
            from fedpp.keys import passphrase

            text = passphrase.typed(new=False)
            reading, writing = os.pipe()
            try:
                os.write(writing, text[: passphrase.MAX_BYTES] + b"\n")  # a pipe holds more
                os.close(writing)
                yield _held(reading)
            finally:
                os.close(reading)


def _held(descriptor: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def _replies(address: str) -> bool:
    if not Path(address.removeprefix(SCHEME)).is_socket():
        return False
    try:
        with VaultClient(address) as vault:
            vault.info()
    except VaultError:
        return False
    return True
