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

SEALED = passphrase.Passphrase(SECRET_WORDS, log2_cost=10).seal("f", {}, b"secret")


def opens(read: passphrase.Passphrase) -> bool:
    return read.unseal("f", SEALED, "key") == ({}, b"secret")


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


def test_what_can_be_no_descriptor_is_named():
    """Any number that the command line takes is refused in one line."""
    for number in (-1, 2**31, 2**63, 2**100):
        with pytest.raises(KeyFileError, match=f"file descriptor {number}: "):
            passphrase.from_descriptor(number)


@pytest.mark.parametrize("end", [b"", b"\n", b"\nsecond line\n"])
def test_the_longest_passphrase_is_the_same_from_everywhere(end: bytes, tmp_path: Path):
    """One of 4096 bytes opens what it closed, and a longer one is refused instead of being cut."""
    path, longest = tmp_path / "passphrase", b"p" * passphrase.MAX_BYTES
    sealed = passphrase.Passphrase(longest, log2_cost=10).seal("f", {}, b"secret")
    path.touch(0o600)
    for text, good in ((longest, True), (longest + b"p", False)):
        path.write_bytes(text + end)
        for read in (lambda: passphrase.from_file(path), lambda: _from_descriptor_of(path)):
            if good:
                assert read().unseal("f", sealed, "key") == ({}, b"secret")
            else:
                with pytest.raises(KeyFileError, match="longer than 4096 bytes"):
                    read()


def _from_descriptor_of(path: Path) -> passphrase.Passphrase:
    with path.open("rb") as file:
        return passphrase.from_descriptor(file.fileno())


def test_systemd_may_show_a_credential_to_the_service_s_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A service's credential may be its group's, too; one open to all, and any other file, is refused."""
    credentials, other = tmp_path / "credentials", tmp_path / "other"
    for folder in (credentials, other):
        folder.mkdir()
        (folder / "passphrase").write_bytes(SECRET_WORDS)
        (folder / "passphrase").chmod(0o440)
    (credentials / "link").symlink_to(other / "passphrase")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert opens(passphrase.from_file(credentials / "passphrase"))
    (credentials / "passphrase").chmod(0o444)
    for path in (credentials / "passphrase", credentials / "link", other / "passphrase"):
        with pytest.raises(KeyFileError, match="chmod 600"):
            passphrase.from_file(path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    (credentials / "passphrase").chmod(0o440)
    with pytest.raises(KeyFileError, match="chmod 600"):
        passphrase.from_file(credentials / "passphrase")


PROMPT = """
import sys
from fedpp.errors import FedppError
from fedpp.keys import passphrase
try:
    read = passphrase.from_terminal(new=sys.argv[1] == "new")
    print(read.unseal("f", bytes.fromhex(sys.argv[2]), "key")[1].decode())
except FedppError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "typed", "printed"),
    [
        ("old", [SECRET_WORDS], "secret"),
        ("new", [SECRET_WORDS, SECRET_WORDS], "secret"),
        ("new", [SECRET_WORDS, b"another horse"], "the two passphrases differ: try again"),
        ("old", [b"short"], "the passphrase in the terminal has 5 bytes"),
        ("old", [b"\x04"], "no passphrase was typed: try again"),  # Ctrl-D
        ("new", [SECRET_WORDS, b"\x04"], "no passphrase was typed: try again"),
    ],
)
def test_a_passphrase_is_typed_in_a_terminal(kind: str, typed: list[bytes], printed: str):
    """An old one is prompted for once and a new one twice, and what is typed is not shown."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROMPT, kind, SEALED.hex()]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True, text=True
    ) as process:
        os.close(theirs)
        shown = b""
        for text in typed:
            while not shown.endswith(b": "):
                shown += os.read(ours, 1)
            os.write(ours, text + b"\n")
            shown += b"\n"
        assert process.stdout is not None
        assert process.stdout.read().startswith(printed)
    os.close(ours)
    assert not any(text in shown for text in typed)


def test_without_a_terminal_the_options_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """There is no prompt where nobody can type; the options are named."""
    with (tmp_path / "nothing").open("w+") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(ConfigError, match="use --passphrase-file or --passphrase-fd"):
            passphrase.from_terminal(new=False)
