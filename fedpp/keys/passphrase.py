"""Where a passphrase comes from: a file, a file descriptor, the terminal; never an argument, which others can see."""

import getpass
import os
import sys
from pathlib import Path

from fedpp.errors import ConfigError, KeyFileError
from fedpp.keys.sealed import Passphrase

LEAST_BYTES = 12
MOST_BYTES = 4096


def from_file(path: Path) -> Passphrase:
    """Read a file's first line; raise `KeyFileError` if it is missing, too short, or open to others."""
    try:
        content = path.read_bytes()
        open_to_others = path.is_file() and path.stat().st_mode & 0o077
    except OSError as error:
        raise KeyFileError(f"cannot read the passphrase file {path}: {error.strerror}") from None
    passphrase = _checked(content, str(path))
    if open_to_others:
        raise KeyFileError(f"the passphrase file {path} is open to others: run `chmod 600 {path}`")
    return passphrase


def from_descriptor(number: int) -> Passphrase:
    """Read the first line that comes from an open file descriptor, such as a pipe of a password manager."""
    try:
        with os.fdopen(number, "rb", closefd=False) as file:
            content = file.readline(MOST_BYTES)
    except OSError as error:
        raise KeyFileError(f"cannot read a passphrase from file descriptor {number}: {error.strerror}") from None
    return _checked(content, f"file descriptor {number}")


def from_terminal(*, new: bool) -> Passphrase:
    """Ask at the terminal, twice for a new one; raise `ConfigError` where there is none."""
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask at: give --passphrase-file, or --passphrase-fd")
    text = getpass.getpass("passphrase: ")
    if new and getpass.getpass("the same again: ") != text:
        raise KeyFileError("the two passphrases differ: try again")
    return _checked(text.encode(), "the terminal")


def _checked(content: bytes, where: str) -> Passphrase:
    text = content.split(b"\n")[0].strip()
    if len(text) < LEAST_BYTES:
        raise KeyFileError(
            f"the passphrase in {where} has {len(text)} bytes: use at least {LEAST_BYTES}, "
            f"such as the output of `openssl rand -base64 24`"
        )
    return Passphrase(text)
