"""The command line of our programs: how commands are found, how they end, and the messages for wrong usage."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from inspect import Parameter, signature
from types import ModuleType

import pytest
from conftest import ROOT

import fedpp
from coordinator.__main__ import PROGRAM as COORDINATOR
from fedpp.cli import Command, Program, natural, positive, rate, share
from fedpp.errors import ConfigError
from simulations.__main__ import PROGRAM as SIMULATIONS
from sites.cli.site_cli import PROGRAM as SITE

PROGRAMS = (SITE, COORDINATOR, SIMULATIONS)
COMMANDS = [
    pytest.param(program, name, id=f"{program.name} {name}") for program in PROGRAMS for name in program.commands
]


@pytest.fixture
def ending_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], Program]:
    """Return a maker of programs whose command `up` ends with an error, or well."""
    given: list[BaseException | None] = [None]

    def up(*, epochs: int | None) -> int:
        if given[0]:
            raise given[0]
        return epochs or 0

    def add_up_arguments(to: argparse.ArgumentParser) -> None:
        to.add_argument("--epochs", type=int, choices=(1, 20))

    module = ModuleType("commands")
    module.up, module.add_up_arguments = up, add_up_arguments
    monkeypatch.setitem(sys.modules, "ours.commands", module)
    commands = {"up": Command("commands:up", "Run."), "status": Command("missing:status", "Not loaded.")}

    def program(error: BaseException | None) -> Program:
        given[0] = error
        return Program("python -m coordinator", "ours", "A program.", commands)

    return program


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
        (KeyboardInterrupt("resume with --resume"), "coordinator up: interrupted: resume with --resume\n"),
        (ConfigError("no \x1b[2J\n\u202e\x9b\udcff"), "coordinator up: no \\x1b[2J\\n\\u202e\\x9b\\udcff\n"),
    ],
)
def test_a_failure_is_one_line_and_status_1(ending_with, error: BaseException, line: str, capsys):
    """A mistake of the user or the system is one printable line on stderr, and nothing on stdout."""
    assert ending_with(error).run(["up"]) == 1
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_may_stop_reading(lines: int):
    """A pipe that is closed, before the results are written or between, ends a command quietly."""
    code = (
        "import sys\n"
        "from types import ModuleType\n"
        "from fedpp.cli import Command, Program\n"
        "module = sys.modules['ours.commands'] = ModuleType('commands')\n"
        f"module.c = lambda: [print('result') for _ in range({lines})] and 0\n"
        "module.add_c_arguments = lambda to: None\n"
        "sys.exit(Program('p', 'ours', '', {'c': Command('commands:c', '')}).run(['c']))\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_a_failure(ending_with, capsys: pytest.CaptureFixture[str]):
    """A broken pipe other than that of our results is reported."""
    assert ending_with(BrokenPipeError(32, "Broken pipe")).run(["up"]) == 1
    assert capsys.readouterr() == ("", "coordinator up: Broken pipe\n")


def test_success_is_silent_and_loads_its_command_alone(ending_with, capsys: pytest.CaptureFixture[str]):
    """The status is the function's, and the module of another command is not imported."""
    assert ending_with(None).run(["up"]) == 0
    assert ending_with(None).run(["up", "--epochs", "20"]) == 20
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "coordinator: the following arguments are required: COMMAND"),
        (["upp"], "coordinator: argument COMMAND: invalid choice: 'upp', did you mean up?"),
        (["down"], "coordinator: argument COMMAND: invalid choice: 'down' (choose from up, status)"),
        (["--verson"], "coordinator: unknown option --verson, did you mean --version?"),
        (["up", "--epoch", "1"], "coordinator up: unknown option --epoch, did you mean --epochs?"),
        (["up", "--xyz=1"], "coordinator up: unknown option --xyz"),
        (["up", "--epochs", "2"], "coordinator up: argument --epochs: invalid choice: '2', did you mean 20?"),
        (["up", "--epochs", "7"], "coordinator up: argument --epochs: invalid choice: '7' (choose from 1, 20)"),
        (["up", "a\x1b"], "coordinator up: unrecognized arguments: a\\x1b"),
        (["up", "-- two words"], "coordinator up: unrecognized arguments: -- two words"),
    ],
)
def test_wrong_usage_names_the_command_and_what_was_meant(
    ending_with, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
):
    """It is status 2 and one line; an abbreviated option is wrong usage, too."""
    with pytest.raises(SystemExit) as exit_:
        ending_with(None).run(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", f"{line} (--help lists what it takes)\n")


@pytest.mark.parametrize(
    "arguments", [["a", "b", "--epochs", "1"], ["a", "--epochs", "1", "b"], ["--epochs", "1", "a", "b"]]
)
def test_any_number_of_arguments_may_stand_around_options(arguments: list[str], monkeypatch: pytest.MonkeyPatch):
    """Argparse's own way finds those before the first option alone."""
    module, given = ModuleType("commands"), []

    def add_names_arguments(to: argparse.ArgumentParser) -> None:
        to.add_argument("first")
        to.add_argument("others", nargs="*")
        to.add_argument("--epochs", required=True)

    module.names, module.add_names_arguments = lambda **options: given.append(options) or 0, add_names_arguments
    monkeypatch.setitem(sys.modules, "ours.commands", module)
    program = Program("ours", "ours", "A program.", {"names": Command("commands:names", "Run.")})
    assert program.run(["names", *arguments]) == 0
    assert given == [{"first": "a", "others": ["b"], "epochs": "1"}]
    for missing in (["names", "--epochs", "1"], ["names", "a"]):
        with pytest.raises(SystemExit):
            program.run(missing)


def test_no_option_is_abbreviated(ending_with):
    """The parsers themselves take whole options alone."""
    with pytest.raises(SystemExit):
        ending_with(None).parsers("up")[0].parse_args(["up", "--epoch", "1"])


def test_a_defect_of_ours_is_not_hidden(ending_with):
    """Any other exception goes through, with its traceback."""
    for error in (ZeroDivisionError(), ImportError("x"), ModuleNotFoundError("x", name="fedpp.x")):
        with pytest.raises(type(error)):
            ending_with(error).run(["up"])


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_takes_the_arguments_that_it_declares(program: Program, name: str):
    """The parser's values are the parameters of its function, by name; each option is explained."""
    parser = program.parsers(name)[1][name]
    function = program.commands[name].load(program.package)
    parameters = signature(function).parameters
    given = {action.dest for action in parser._actions} - {"help"}
    rest = [each.name for each in parameters.values() if each.kind is Parameter.VAR_KEYWORD]
    named = set(parameters) - set(rest)
    assert named <= given
    assert rest or named == given
    assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_program_prints_its_version(program: Program, capsys: pytest.CaptureFixture[str]):
    """--version prints that of pyproject.toml."""
    with pytest.raises(SystemExit) as exit_:
        program.run(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"{program.name.removeprefix('python -m ')} {fedpp.__version__}\n"


def test_the_version_loads_nothing_until_it_is_read():
    """`import fedpp` imports no other module; an unknown attribute is an error."""
    code = "import sys; before = set(sys.modules); import fedpp; print(set(sys.modules) - before, fedpp.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{{'fedpp'}} {fedpp.__version__}\n"
    assert fedpp.__version__ in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(AttributeError):
        _ = fedpp.no_such_name


@pytest.mark.parametrize("module", ["sites.cli.site_cli", "coordinator.__main__", "simulations.__main__"])
def test_help_is_quick(module: str):
    """The help of no command loads TensorFlow, Flower, NumPy or another large package."""
    code = (
        f"import sys\nfrom {module} import PROGRAM\n"
        "for name in PROGRAM.commands:\n"
        "    try: PROGRAM.run([name, '--help'])\n    except SystemExit: pass\n"
        "    large = {'tensorflow', 'keras', 'flwr', 'numpy', 'cryptography', 'yaml', 'grpc'} & set(sys.modules)\n"
        "    assert not large, (name, large)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["coordinator", "bundle"], "coordinator bundle"),
        (["simulations", "run", "demo"], "simulations run"),
        (["sites", "card", "."], "fedpp-site card"),
    ],
)
def test_without_the_environment_one_line_says_what_to_do(arguments: list[str], called: str):
    """An interpreter without fedpp's dependencies prints which package is missing, and how to install it."""
    command = [sys.executable, "-S", "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"{called}: the package ")
    assert f"is not installed for {sys.executable}: in a checkout, run `make .venv/installed`" in line


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
