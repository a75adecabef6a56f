"""Python runs this first in every process that has this folder on its PYTHONPATH: no call leaves the machine unseen.

Each process writes a file into `FEDPP_SOCKET_GUARD`: its command line, then whatever host it would have called or
looked up that is not this machine. Those calls are refused. It does not see what C code calls by itself.
"""

import os
import socket
import sys
import time
from ipaddress import ip_address
from pathlib import Path

FOLDER = os.environ.get("FEDPP_SOCKET_GUARD", "")
STARTED = time.time_ns()  # a process's number comes again
LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}  # of a host
CALLS = {"socket.connect", "socket.sendto", "socket.sendmsg"}  # by a socket, to an address


def write(line: str) -> None:
    """Add a line to this process's file, which other users' processes cannot change."""
    with (Path(FOLDER) / f"{os.getpid()}-{STARTED}").open("a") as file:
        file.write(f"{line}\n")


def is_here(host: object) -> bool:
    """Tell whether a host is this machine, by what needs no look-up: an address that a socket can have."""
    text = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return text == "localhost"
    kind = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((text, 0))
        except OSError:
            return False
    return True


def guard(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what would leave the machine."""
    if event in LOOKUPS:
        host = arguments[0]
    elif event in CALLS and isinstance(arguments[1], tuple) and isinstance(arguments[1][0], str):
        host = arguments[1][0]  # an address of the internet: others are a path, or numbers
    else:
        return
    if not is_here(host):
        write(f"{event} {host!r}")
        raise PermissionError(f"the socket guard of the tests refuses {host!r}")


if FOLDER:
    write(" ".join(sys.orig_argv).replace("\n", " "))
    sys.addaudithook(guard)
