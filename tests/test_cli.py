"""How a command of ours ends."""

import argparse
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from fedpp.cli import natural, positive, rate, run_command, share
from fedpp.errors import ConfigError


def ending_with(error: BaseException | None) -> argparse.ArgumentParser:
    """Return a parser whose one command ends with this error."""

    def run(_: argparse.Namespace) -> int:
        if error:
            raise error
        return 0

    parser = argparse.ArgumentParser(prog="python -m coordinator")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up").set_defaults(run=run)
    return parser


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("no sites: name some"), "coordinator up: no sites: name some\n"),
        (
            OSError(28, "No space left on device", "out/x"),
            "coordinator up: No space left on device (out/x): check the path and its permissions\n",
        ),
        (FileExistsError("a key is there already"), "coordinator up: a key is there already\n"),
        (MemoryError("9 GiB"), "coordinator up: not enough memory: 9 GiB; take smaller images or batches\n"),
        (KeyboardInterrupt(), "coordinator up: interrupted\n"),
    ],
)
def test_a_failure_is_one_line_and_status_1(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]):
    """What the user or the system did wrong is said in one line on stderr, and nothing on stdout."""
    assert run_command(ending_with(error), ["up"]) == 1
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_may_stop_reading(lines: int):
    """A pipe that is closed, before the results are written or between, ends a command quietly."""
    code = (
        "import argparse, sys\n"
        "from fedpp.cli import run_command\n"
        "parser = argparse.ArgumentParser(prog='p')\n"
        f"run = lambda options: [print('result') for _ in range({lines})] and 0\n"
        "parser.add_subparsers(dest='command').add_parser('c').set_defaults(run=run)\n"
        "sys.exit(run_command(parser, ['c']))\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_a_failure(capsys: pytest.CaptureFixture[str]):
    """One that is not that of our results is told."""
    assert run_command(ending_with(BrokenPipeError(32, "Broken pipe")), ["up"]) == 1
    assert capsys.readouterr() == ("", "coordinator up: Broken pipe\n")


def test_success_and_wrong_usage(capsys: pytest.CaptureFixture[str]):
    """Success is silent and 0; wrong usage is 2."""
    assert run_command(ending_with(None), ["up"]) == 0
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit) as exit_:
        run_command(ending_with(None), ["down"])
    assert exit_.value.code == 2


def test_a_defect_of_ours_is_not_hidden():
    """Any other exception goes through, with its traceback."""
    with pytest.raises(ZeroDivisionError):
        run_command(ending_with(ZeroDivisionError()), ["up"])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (positive, "1", ("0", "-1", "1.5", "x")),
        (natural, "0", ("-1", "x")),
        (rate, "0.1", ("0", "-1", "nan", "inf", "x")),
        (share, "1", ("0", "-1", "nan", "1.01", "x")),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(kind, good: str, bad: tuple[str, ...]):
    """A number that makes no sense ends in status 2 before anything runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--value", type=kind)
    assert parser.parse_args(["--value", good]).value == float(good)
    for text in bad:
        with pytest.raises(SystemExit) as exit_:
            parser.parse_args([f"--value={text}"])
        assert exit_.value.code == 2
