"""Flower's command line `flwr`, which controls SuperLink through the connection that `up` wrote."""

import json
import os
import subprocess
from typing import Any

from fedpp.errors import FederationError
from fedpp.processes import QUIET_FLOWER

from .superlink import State

REPLY_SECONDS = 120.0  # to a command, whose start alone takes seconds


class NoSuperLinkError(FederationError):
    """SuperLink does not answer at the moment."""


def flower(state: State, *arguments: str) -> dict[str, Any]:
    """Run a command of Flower and return its JSON output; raise `FederationError` with its reason if it fails."""
    if not state.connection.exists():
        raise FederationError(f"{state.folder} is no coordinator's state: start one with `up --state {state.folder}`")
    try:
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env={**os.environ, **QUIET_FLOWER, **state.environment()},
            cwd=state.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for us alone
            timeout=REPLY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NoSuperLinkError(
            f"SuperLink did not answer `flwr {arguments[0]}` within {REPLY_SECONDS:.0f} s: see {state.log}"
        ) from None
    try:
        output: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        output = {"success": False, "error-message": done.stderr.strip() or done.stdout.strip()}
    if done.returncode == 0 and output.get("success"):
        return output
    message = " ".join(str(output.get("error-message", "")).split())
    if "connection to the superlink is unavailable" in message.lower():
        raise NoSuperLinkError(
            f"no SuperLink answers: start one with `python -m coordinator up --state {state.folder}`"
        )
    raise FederationError(f"SuperLink refused `flwr {arguments[0]}`: {message or f'status {done.returncode}'}")
