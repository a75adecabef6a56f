"""`fedpp-site vault` in a process of its own, which is forked from one that has done all its imports."""

import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from fedpp.errors import VaultError
from sites.cli.site_cli import main

END_SECONDS = 20.0
IMPORTED = (
    "fedpp.dataset.encrypted_dataset",
    "sites.cli.vault_commands",
    "sites.vault.audit.audit_log",
    "sites.vault.sd_notify",
    "sites.vault.vault_server",
    "sites.vault.vault_service",
)


class NotReadyError(VaultError):
    """A vault that did not start, with its stderr."""


class VaultProcess:
    """A vault with these arguments; its stderr goes to a file."""

    def __init__(self, *arguments: object, errors: Path) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self._reader, writer = context.Pipe(duplex=False)
        self._errors = errors
        self.process: ForkServerProcess = context.Process(
            target=_site_vault, args=(list(map(str, arguments)), dict(os.environ), writer, errors), daemon=True
        )
        self.process.start()
        writer.close()

    def await_ready(self, address: str) -> None:
        """Wait until it serves; raise `NotReadyError` if it ends."""
        with os.fdopen(os.dup(self._reader.fileno())) as output:
            if output.readline() != f"vault ready at {address}\n":
                self.process.join()
                raise NotReadyError(self._errors.read_text())

    def end(self) -> None:
        """Terminate it, or kill it if that does not end it, as when it is stopped."""
        self.process.terminate()
        self.process.join(END_SECONDS)
        self.process.kill()
        self.process.join()
        self._reader.close()


def _site_vault(arguments: list[str], environment: dict[str, str], output: Connection, errors: Path) -> None:
    os.environ |= environment
    os.dup2(output.fileno(), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.exit(main(["vault", *arguments]))
