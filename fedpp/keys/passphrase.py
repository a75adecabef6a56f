"""Passphrase sources: a file, a file descriptor or the terminal; never an argument, which other users can see."""

import getpass
import os
import sys
from pathlib import Path
from shlex import quote

from fedpp.errors import ConfigError, KeyFileError
from fedpp.keys.sealed_secret import Passphrase

MIN_BYTES = 12
MAX_BYTES = 4096


def from_file(path: Path) -> Passphrase:
    """Read a file's first line; raise `KeyFileError` if it is missing, too short, or accessible to others."""
    try:
        with path.open("rb") as file:
            content = file.readline(MAX_BYTES + 1)
        open_to_others = path.is_file() and path.stat().st_mode & _others(path)
    except OSError as error:
        raise KeyFileError(f"cannot read the passphrase file {path}: {error.strerror}") from None
    passphrase = _checked(content, str(path))
    if open_to_others:
        raise KeyFileError(f"the passphrase file {path} is open to other users: run `chmod 600 {quote(str(path))}`")
    return passphrase


def from_descriptor(number: int) -> Passphrase:
    """Read the first line from an open file descriptor, such as a pipe of a password manager."""
    try:
        with os.fdopen(number, "rb", closefd=False) as file:
            content = file.readline(MAX_BYTES + 1)
    except (OSError, TypeError, ValueError, OverflowError) as error:  # the latter: not a possible descriptor number
        reason = error.strerror if isinstance(error, OSError) else "there is no such descriptor"
        raise KeyFileError(f"cannot read a passphrase from file descriptor {number}: {reason}") from None
    return _checked(content, f"file descriptor {number}")


def from_terminal(*, new: bool) -> Passphrase:
    """Prompt at the terminal, twice for a new passphrase; raise `ConfigError` where there is no terminal."""
    return _checked(typed(new=new), "the terminal")


def typed(*, new: bool) -> bytes:
    """Return what is typed at the terminal, to be handed to another process; raise as `from_terminal` does."""
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to prompt at: use --passphrase-file or --passphrase-fd")
    try:
        text = getpass.getpass("passphrase: ")
        again = getpass.getpass("repeat passphrase: ") if new else text
    except EOFError:
        raise KeyFileError("no passphrase was typed: try again") from None
    if again != text:
        raise KeyFileError("the two passphrases differ: try again")
    return text.encode()


def _others(path: Path) -> int:
    """Return the permission bits that a passphrase file must not have; systemd gives service credentials mode 0440."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return 0o007 if credentials and path.resolve().is_relative_to(Path(credentials).resolve()) else 0o077


def _checked(content: bytes, where: str) -> Passphrase:
    if len(content.rstrip(b"\n")) > MAX_BYTES:
        raise KeyFileError(f"the passphrase in {where} is longer than {MAX_BYTES} bytes: use a shorter one")
    text = content.split(b"\n")[0].strip()
    if len(text) < MIN_BYTES:
        raise KeyFileError(
            f"the passphrase in {where} has {len(text)} bytes: use at least {MIN_BYTES}, "
            f"such as the output of `openssl rand -base64 24`"
        )
    return Passphrase(text)
