"""Where a passphrase comes from."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from members import SECRET_WORDS

from fedpp.errors import ConfigError, KeyFileError
from fedpp.keys import passphrase

SEALED = passphrase.Passphrase(SECRET_WORDS, log2_cost=10).close("f", {}, b"secret")


def opens(read: passphrase.Passphrase) -> bool:
    return read.open("f", SEALED, "key") == ({}, b"secret")


def test_files_are_checked(tmp_path: Path):
    """The first line counts; missing, short and readable-by-others files are refused with what to do."""
    path = tmp_path / "passphrase"
    with pytest.raises(KeyFileError, match="cannot read"):
        passphrase.from_file(path)
    path.write_bytes(SECRET_WORDS + b"\nsecond line\n")
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        passphrase.from_file(path)
    path.chmod(0o600)
    assert opens(passphrase.from_file(path))
    path.write_bytes(b"short\n")
    with pytest.raises(KeyFileError, match="has 5 bytes: use at least 12"):
        passphrase.from_file(path)


def test_a_descriptor_gives_its_first_line():
    """What a password manager writes into a pipe is read; a closed one is named."""
    reading, writing = os.pipe()
    os.write(writing, SECRET_WORDS + b"\nsecond line\n")
    os.close(writing)
    assert opens(passphrase.from_descriptor(reading))
    os.close(reading)
    with pytest.raises(KeyFileError, match=f"file descriptor {reading}"):
        passphrase.from_descriptor(reading)


ASK = """
import sys
from fedpp.errors import FedppError
from fedpp.keys import passphrase
try:
    read = passphrase.from_terminal(new=sys.argv[1] == "new")
    print(read.open("f", bytes.fromhex(sys.argv[2]), "key")[1].decode())
except FedppError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "typed", "answer"),
    [
        ("old", [SECRET_WORDS], "secret"),
        ("new", [SECRET_WORDS, SECRET_WORDS], "secret"),
        ("new", [SECRET_WORDS, b"another horse"], "the two passphrases differ: try again"),
        ("old", [b"short"], "the passphrase in the terminal has 5 bytes"),
    ],
)
def test_a_terminal_is_asked(kind: str, typed: list[bytes], answer: str):
    """It is asked once for an old one and twice for a new one, and what is typed is not shown."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ASK, kind, SEALED.hex()]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True, text=True
    ) as asked:
        os.close(theirs)
        shown = b""
        for text in typed:
            while not shown.endswith(b": "):
                shown += os.read(ours, 1)
            os.write(ours, text + b"\n")
            shown += b"\n"
        assert asked.stdout is not None
        assert asked.stdout.read().startswith(answer)
    os.close(ours)
    assert not any(text in shown for text in typed)


def test_without_a_terminal_the_options_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nobody is asked who cannot answer."""
    with (tmp_path / "nothing").open("w+") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(ConfigError, match="give --passphrase-file, or --passphrase-fd"):
            passphrase.from_terminal(new=False)
