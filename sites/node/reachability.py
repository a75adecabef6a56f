"""Checks of a coordinator from a site that has not joined: port, certificate, clock, and which paths are open.

They use no key of the site, and send no request that the coordinator would act on.
"""

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

from cryptography import x509

from fedpp.errors import ConfigError, FederationError, UnreachableError
from fedpp.protocol.coordinator_identity import CoordinatorIdentity

SECONDS = 10.0  # for a reply
MAX_AHEAD, MAX_BEHIND = timedelta(seconds=5), timedelta(seconds=300)  # of a node's clock: SuperLink rejects others
FLEET = "/v1/fleet/pull-messages"  # for sites
OTHERS = ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/health")  # closed to sites by the proxy
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*


@dataclass(frozen=True)
class Reply:
    """Reply to a request, with the local times around it; `date` is the coordinator's, in whole seconds."""

    status: int
    date: datetime | None
    sent: datetime
    received: datetime


@dataclass(frozen=True)
class Coordinator:
    """A coordinator's address, and the CA certificate that it is checked by."""

    host: str
    port: int
    ca: Path

    @classmethod
    def parse(cls, superlink: str, ca: Path) -> Self:
        """Read HOST:PORT; raise `ConfigError` for anything else."""
        host, _, port = superlink.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ConfigError(f"--superlink must be HOST:PORT, got {superlink!r}")
        return cls(host.removeprefix("[").removesuffix("]"), int(port), ca)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def identity(self) -> CoordinatorIdentity:
        """Return the coordinator as the site knows it; raise `ConfigError` for a CA file that cannot be read."""
        try:
            authority = x509.load_pem_x509_certificate(self.ca.read_bytes())
        except (OSError, ValueError):
            raise ConfigError(f"{self.ca} is no certificate in PEM: ask the coordinator for its ca.pem") from None
        return CoordinatorIdentity.of_certificate(authority, self.host)

    def require_port(self) -> None:
        """Raise `UnreachableError` unless a server listens."""
        with self._reaching(), socket.create_connection((self.host, self.port), SECONDS):
            pass

    def certificate_end(self) -> datetime:
        """Return when the coordinator's certificate ends.

        Raises `FederationError` that names what is wrong with it, `UnreachableError` if no server answers.
        """
        with self._reaching(), self._secured(self._context()) as secured:
            end = str((secured.getpeercert() or {})["notAfter"])
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(end), UTC)

    def request(self, method: str, path: str) -> Reply:
        """Send a request without content; raise as `certificate_end` does."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=SECONDS, context=self._context())
        with self._reaching():
            try:
                sent = datetime.now(UTC)
                connection.request(method, path)
                response = connection.getresponse()
                return Reply(response.status, _date(response.getheader("Date")), sent, datetime.now(UTC))
            finally:
                connection.close()

    @contextmanager
    def _secured(self, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection((self.host, self.port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=self.host) as secured,
        ):
            yield secured

    def _context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot read the certificate {self.ca}: {error.strerror or error}: ask the coordinator for its ca.pem"
            ) from None

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Raise an error of one line if a coordinator cannot be reached or trusted."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise FederationError(self._distrusted(error.verify_code)) from None
        except ssl.SSLError as error:
            raise FederationError(
                f"{self} does not speak TLS as a coordinator does ({error.reason}): is it the right port?"
            ) from None
        except TimeoutError:
            raise UnreachableError(
                f"{self} timed out: a firewall may drop the connection; ask both sides' network staff to let it pass"
            ) from None
        except ConnectionRefusedError:
            raise UnreachableError(
                f"{self} refused the connection: nothing listens there; is the coordinator up, and the port right?"
            ) from None
        except socket.gaierror:
            raise UnreachableError(f"{self.host} has no address: check the name, and this machine's DNS") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self} cannot be reached ({error}): check network and proxy") from None

    def _distrusted(self, code: int) -> str:
        if code == _EXPIRED:
            return f"the certificate of {self} has expired: its coordinator renews it at the next start of `up`"
        if code == _NOT_YET:
            return f"the certificate of {self} is not valid yet: is this machine's clock right?"
        if code in {_WRONG_NAME, _WRONG_ADDRESS}:
            return (
                f"the certificate of {self} is for {', '.join(self._names())} and not for {self.host}: call it by one "
                f"of these names, or ask the coordinator to start `up` with --name {self.host}"
            )
        return f"the certificate of {self} is of another authority than {self.ca}: ask this coordinator for its ca.pem"

    def _names(self) -> list[str]:
        context = self._context()
        context.check_hostname = False
        with self._secured(context) as secured:
            return sorted(str(name[1]) for name in (secured.getpeercert() or {}).get("subjectAltName", ()))


def clock_error(reply: Reply) -> timedelta | None:
    """Return by how much the local clock is at least ahead of the coordinator's, or behind it (negative).

    That is zero where whole seconds and the time of the call may explain the difference, and None without a date.
    """
    if reply.date is None:
        return None
    lower, upper = reply.sent - reply.date - timedelta(seconds=1), reply.received - reply.date
    return max(lower, timedelta()) + min(upper, timedelta())


def _date(header: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
