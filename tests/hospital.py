"""One hospital of a test: a passphrase, a key domain, raw phantom images, and its commands."""

import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from conftest import ROOT

from fedpp.keys import sealed_secret
from simulations.phantom import write_phantom
from sites.cli.site_cli import main


def site_process(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own, and check its exit status."""
    command = [sys.executable, "-m", "sites", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == check, done.stdout + done.stderr
    return done


def site(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in this process and check its exit status; what it seals under a passphrase is cheap to open.

    That saves the seconds that its imports and the passphrase take.
    """
    given, stdout, stderr = [str(argument) for argument in arguments], StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed_secret, "LOG2_COST", 10)
        try:
            status = main(given)
        except SystemExit as wrong_usage:
            status = wrong_usage.code
    assert status == check, stdout.getvalue() + stderr.getvalue()
    return subprocess.CompletedProcess(given, status, stdout.getvalue(), stderr.getvalue())


def error_of(*arguments: object) -> str:
    """Run a command that must fail, and return its one line."""
    done = site(*arguments, check=1)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


def found(folder: Path, patients: int) -> Path:
    """Make a hospital in a folder, of patients with three visits each."""
    passphrase = folder / "passphrase"
    passphrase.write_text("correct horse battery\n")
    passphrase.chmod(0o600)
    site("keygen", "--out", folder / "domain", "--passphrase-file", passphrase)
    write_phantom(folder / "raw", hospitals=1, patients=patients, visits=3, size=24, seed=0)
    return folder


def keys(folder: Path) -> tuple[object, ...]:
    """Return the arguments that open a hospital's key domain."""
    return "--domain", folder / "domain", "--passphrase-file", folder / "passphrase"
