"""Identity of a coordinator: its certificate authority (CA) and its name, as a site gave them to `fedpp-site join`.

A site's vault signs it in each statement, so that a coordinator cannot pass a statement on to another one. The CA alone
would not tell coordinators apart whose certificates a hospital group's CA issues.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Self

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from fedpp.errors import FederationError
from fedpp.values import Declared, Listed, hexadecimal, rule

LONGEST_HOST = 253  # of DNS
_HOST = re.compile(r"(\*\.)?[a-z0-9_:]([a-z0-9_.:-]*[a-z0-9_])?")
_ALLOWED = "a host name in lower case, or an IP address"


def is_host(value: object) -> bool:
    """Tell whether a value is a host's name or address, in the one form in which it is compared."""
    return isinstance(value, str) and len(value) <= LONGEST_HOST and _HOST.fullmatch(value) is not None


def canonical_host(name: str) -> str:
    """Return a host's name or address in that form."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower().removesuffix(".")


Fingerprint = Annotated[str, hexadecimal()]  # of a CA certificate: SHA-256 of its DER form
Host = Annotated[str, rule(_ALLOWED, is_host)]


@dataclass(frozen=True)
class CoordinatorIdentity(Declared, label="coordinator", error=FederationError):
    """A coordinator as one site knows it."""

    authority: Fingerprint
    name: Host

    @classmethod
    def of_certificate(cls, authority: x509.Certificate, host: str) -> Self:
        """Return the coordinator of this CA certificate and host name or address."""
        return cls(authority.fingerprint(SHA256()).hex(), canonical_host(host))

    def __str__(self) -> str:
        return f"{self.name} of authority {self.authority[:16]}"


SIMULATED = CoordinatorIdentity("0" * 64, "simulation")


@dataclass(frozen=True)
class CoordinatorNames(Declared, label="coordinator's names", error=FederationError):
    """By what a run's sites may know its coordinator; at a site, the one way in which it knows it itself."""

    authorities: Annotated[tuple[Fingerprint, ...], Listed()]
    names: Annotated[tuple[Host, ...], Listed()]  # a name like *.example.org stands for all names with one more label

    @classmethod
    def only(cls, identity: CoordinatorIdentity) -> Self:
        """Return the names of a coordinator that is called in one way."""
        return cls((identity.authority,), (identity.name,))

    @classmethod
    def of_run(cls, text: str) -> Self:
        """Return the names in a run's configuration, JSON; those of a simulation for an empty text."""
        return cls.from_json(text) if text else cls.only(SIMULATED)

    def require(self, site: str, known: CoordinatorIdentity) -> None:
        """Raise `FederationError` unless a site's statement names this coordinator."""
        if known.authority in self.authorities and any(_names(name, known.name) for name in self.names):
            return
        raise FederationError(
            f"{site} knows the coordinator as {known}, and this run is of {', '.join(self.names)}, authority "
            f"{' or '.join(authority[:16] for authority in self.authorities)}: its statement was replayed, or the "
            "sites join by different names or certificates"
        )


def _names(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:]
    return host == pattern
