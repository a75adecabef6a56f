"""Lookup log: who asked for the names behind which pseudonyms, on the disk before any name is shown.

It is an audit log in the domain's folder, signed by the site's identity; `fedpp-site audit-log verify` checks it. Its
lines name pseudonyms and no patient.
"""

import os
import pwd
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from fedpp.errors import LogInUseError, VaultError
from fedpp.keys.site_identity import SiteIdentity

from .audit_log import AuditLog, Signer

LOG = "lookups.log"
MAX_PSEUDONYMS = 64  # of a line: 35 bytes each, of `audit_chain.MAX_LINE_BYTES` 4096
_LOGIN = Path("/proc/self/loginuid")  # who logged in, also after `sudo`; only root can change it
_NO_LOGIN = str(2**32 - 1)


def record(domain: Path, identity: SiteIdentity, shown: str, found: Sequence[str], unknown: Sequence[str]) -> None:
    """Add the pseudonyms of one lookup to the log in a domain's folder; raise `VaultError` if that fails.

    `shown` is what the user gets: names, or a page.
    """
    try:
        log = AuditLog.open(domain / LOG, Signer.of(identity))
    except LogInUseError:
        raise VaultError(f"another lookup is writing {domain / LOG}: try again when it has ended") from None
    with closing(log):
        for outcome, pseudonyms in (("found", found), ("unknown", unknown)):
            for first in range(0, len(pseudonyms), MAX_PSEUDONYMS):
                part = list(pseudonyms[first : first + MAX_PSEUDONYMS])
                log.append({"method": "lookup", "outcome": outcome, "who": _who(), "shown": shown, "pseudonyms": part})


def _who() -> str:
    """Return the user of this process, and the user who logged in where the system knows it."""
    users = {"uid": os.getuid()}
    with suppress(OSError, ValueError):
        if (login := _LOGIN.read_text().strip()) != _NO_LOGIN:
            users["login uid"] = int(login)
    return ", ".join(f"{what} {uid}{_name(uid)}" for what, uid in users.items())


def _name(uid: int) -> str:
    try:
        return f" ({pwd.getpwuid(uid).pw_name:.100})"
    except KeyError:  # no user of this machine, as in a container
        return ""
