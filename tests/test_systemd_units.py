"""The systemd units of the documentation: valid, hardened, and in step with the commands that they start."""

import re
import shlex
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import ROOT

from coordinator.__main__ import PROGRAM as COORDINATOR_PROGRAM
from sites.cli.site_cli import PROGRAM as SITE_PROGRAM

FOLDER = ROOT / "docs" / "systemd"
UNITS = ("fedpp-vault.service", "fedpp-site.service")
COORDINATOR = "fedpp-coordinator.service"
PROGRAM, PYTHON = "/opt/fedpp/bin/fedpp-site", "/opt/fedpp/bin/python"
HARDENED = {
    "ProtectSystem": "strict",
    "ProtectHome": "true",
    "PrivateTmp": "true",
    "NoNewPrivileges": "true",
    "CapabilityBoundingSet": "",
    "LimitCORE": "0",
}


def settings(unit: str) -> dict[str, list[str]]:
    """Return a unit's settings, of each all values."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / unit).read_text().replace("\\\n", " ").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def commands(unit: str) -> list[list[str]]:
    names = ("ExecStartPre", "ExecStart", "ExecStartPost")
    return [shlex.split(value) for name in names for value in settings(unit).get(name, [])]


def parsed(arguments: list[str]) -> Namespace:
    """Return the options of a command of `fedpp-site`."""
    return SITE_PROGRAM.parsers(arguments[0])[0].parse_args(arguments)


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_start_commands_that_there_are(unit: str):
    """Each command line is one that `fedpp-site` takes, option by option."""
    assert len(commands(unit)) == 2
    for program, *arguments in commands(unit):
        assert program == PROGRAM
        parsed(arguments)


def test_the_coordinator_s_unit_starts_a_command_that_there_is():
    """It runs in the checkout, keeps its state where it may write, and opens a port that needs no right."""
    (command,) = commands(COORDINATOR)
    assert command[:3] == [PYTHON, "-m", "coordinator"]
    options = COORDINATOR_PROGRAM.parsers("up")[0].parse_args(command[3:])
    unit = settings(COORDINATOR)
    assert unit["WorkingDirectory"] == ["/opt/fedpp/checkout"]
    assert str(options.state).startswith(f"/var/lib/{unit['StateDirectory'][0]}/")
    assert options.listen.port >= 1024


def test_the_two_units_fit_together():
    """The trainer asks the vault where it listens, checks its health there, and cannot see its folders."""
    vault, site = (settings(unit) for unit in UNITS)
    (address,) = (parsed(c[1:]).address for c in commands(UNITS[0]) if c[1] == "vault")
    assert {c[2] for unit in UNITS for c in commands(unit) if c[1] == "health"} == {address}
    assert {parsed(c[1:]).vault for c in commands(UNITS[1]) if c[1] == "join"} == {address}
    assert address == f"unix:/run/{vault['RuntimeDirectory'][0]}/vault.sock"
    options = next(parsed(c[1:]) for c in commands(UNITS[0]) if c[1] == "vault")
    assert vault["ReadWritePaths"] == [f"{options.audit_log.parent} {options.runs}"]
    assert f"/var/lib/{vault['StateDirectory'][0]}" == str(options.runs)
    assert str(options.passphrase.file) == "${CREDENTIALS_DIRECTORY}/passphrase"
    hidden = site["InaccessiblePaths"][0].split()
    assert f"-{options.domain.parent}" in hidden
    assert f"-{options.audit_log.parent}" in hidden
    assert vault["User"] != site["User"]
    assert vault["Group"] == site["Group"]


@pytest.mark.parametrize("unit", [*UNITS, COORDINATOR])
def test_the_units_are_hardened(unit: str):
    """Each process has a user of its own and no way to more rights; the vault has no network."""
    found = settings(unit)
    assert {name: found[name] for name in HARDENED} == {name: [value] for name, value in HARDENED.items()}
    assert found["User"][0] not in {"", "root"}
    assert ("PrivateNetwork" in found) == (unit == "fedpp-vault.service")
    if unit == "fedpp-vault.service":
        assert (found["PrivateNetwork"], found["RestrictAddressFamilies"]) == (["true"], ["AF_UNIX"])
        assert found["LoadCredential"] == ["passphrase:/etc/fedpp/passphrase"]
        assert found["Type"] == ["notify"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path):
    """`systemd-analyze verify` finds nothing to say, once the program is where it looks."""
    for unit in (*UNITS, COORDINATOR):
        text = re.sub(f"{PROGRAM}|{PYTHON}", str(shutil.which("true")), (FOLDER / unit).read_text())
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit) for unit in (*UNITS, COORDINATOR))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
