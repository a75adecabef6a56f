"""Address of a server: a host and a port."""

import argparse
import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from fedpp.errors import ConfigError

LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Address:
    """A host's name or IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_unspecified(self) -> bool:
        """Tell whether it means all addresses of this machine."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104

    def from_here(self) -> tuple[str, int]:
        """Return host and port by which this machine reaches a server that listens there."""
        return ("::1" if ":" in self.host else LOOPBACK) if self.is_unspecified else self.host, self.port

    def listener(self) -> socket.socket:
        """Listen there; raise `ConfigError` if that fails."""
        try:
            return socket.create_server(
                (self.host, self.port), family=socket.AF_INET6 if ":" in self.host else socket.AF_INET
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {self} ({error}): choose another --port or --listen") from None


def address(text: str) -> Address:
    """Parse `HOST:PORT`, for argparse; an IPv6 address is in brackets."""
    host, _, number = text.rpartition(":")
    with suppress(ValueError, argparse.ArgumentTypeError):
        if host.startswith("[") and host.endswith("]"):
            return Address(str(ipaddress.IPv6Address(host[1:-1])), port(number))
        if _NAME.fullmatch(host):
            return Address(host, port(number))
    raise argparse.ArgumentTypeError(f"must be HOST:PORT, as 0.0.0.0:8443 or [::]:8443, got {text!r:.80}")


def port(text: str) -> int:
    """Parse a port, for argparse."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r:.40}")
    return int(text)
