"""Ctrl-C, at any moment of a command: one line, exit status 1, and nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hospital import site

SECONDS = 60.0
CAUGHT = 1 << (signal.SIGTERM - 1)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a passphrase and a domain."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "passphrase").touch(0o600)
    (folder / "passphrase").write_text("correct horse battery\n")
    site("keygen", "--out", folder / "domain", "--passphrase-file", folder / "passphrase")
    return folder


def started(process: subprocess.Popen[str]) -> bool:
    """Return whether a process has reached our first lines, by the signals that it catches."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) & CAUGHT)


def interrupted(arguments: list[str], after: float, number: int) -> "tuple[int, str, str]":
    """Send a signal some seconds after the first line of ours; return status, stdout and stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "sites", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + SECONDS
        while not started(process) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(after)
        process.send_signal(number)
        out, error = process.communicate(timeout=SECONDS)
    return process.returncode, out, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_rotation_is_interrupted_at_any_moment(hospital: Path, number: int, steps: int):
    """From the first imports on there is no traceback and no death by a signal, and what is left is all or nothing."""
    arguments = ["rotate", "--again", "--domain", hospital / "domain", "--passphrase-file", hospital / "passphrase"]
    before = {path.name for path in hospital.iterdir()}
    statuses = []
    for step in range(steps):
        out, after = hospital / f"new {number} {step} of {steps}", (step / steps) ** 2
        status, printed, error = interrupted([*map(str, arguments), "--out", str(out)], after, number)
        statuses.append(status)
        assert "Traceback" not in error
        if status == 0:
            before.add(out.name)
            assert printed
        else:
            assert (status, error.split(": ")[-1]) == (1, "interrupted\n")
            assert error.count("\n") == 1
        assert {path.name for path in hospital.iterdir()} == before
    assert statuses[:2] == [1, 1]


def test_a_command_in_the_background_of_a_script_is_not_interrupted(hospital: Path):
    """A shell without a terminal starts background commands with Ctrl-C ignored, which is respected."""
    command = 'trap "" INT; exec "$0" -m sites card "$1"'
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable, str(hospital / "domain")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        time.sleep(0.02)
        for _ in range(10):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert out == (hospital / "domain" / "domain.card").read_bytes()


def test_an_interruption_within_an_evaluated_text_is_no_death_by_a_signal(tmp_path: Path):
    """A command that is interrupted while an import evaluates a text ends with status 1, also under `python -m`."""
    package = tmp_path / "trial"
    package.mkdir()
    (package / "commands.py").write_text(
        "def add_work_arguments(to):\n    pass\n\n"
        "def interrupt():\n    raise KeyboardInterrupt\n\n"
        "def work():\n    eval('interrupt()')\n"
    )
    (package / "__main__.py").write_text(
        "import sys\nfrom fedpp.cli import Command, Program\n"
        "sys.exit(Program('trial', 'trial', 'A program.', {'work': Command('commands:work', 'Work')}).run())\n"
    )
    command = [sys.executable, "-m", "trial", "work"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "trial work: interrupted\n")
