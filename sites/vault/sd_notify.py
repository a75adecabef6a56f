"""What a service tells systemd of itself (sd_notify(3)); without systemd it tells nobody."""

import os
import socket


def notify(state: str) -> None:
    """Send a state, such as `READY=1`, to the socket in `NOTIFY_SOCKET`, if there is one that listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            to.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:  # a vault that serves must not end because nobody listens
            return
