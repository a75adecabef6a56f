"""Service notifications to systemd (sd_notify(3)), which are dropped without systemd."""

import os
import socket


def notify(state: str) -> None:
    """Send a state, such as `READY=1`, to the socket in `NOTIFY_SOCKET`, if one listens there."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            to.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:  # a serving vault must not end because nobody listens
            return
