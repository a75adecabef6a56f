"""The command line of our programs: a table of commands, exit statuses, and one line on stderr for a failure.

A program is a table of commands. The module of a command is imported when the command is named, so that `--help` is
quick. A command is a function `NAME` of typed arguments, which returns the exit status, and a function
`add_NAME_arguments` beside it, which declares them for argparse.
"""

import argparse
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import inf, nan
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import fedpp
from fedpp.errors import FedppError, UsageError
from fedpp.texts import printable, suggestion
from fedpp.values import Declared, Rule, hyphenated, is_hex, whole

OURS = {"fedpp", "sites", "coordinator", "simulations"}


class Parser(argparse.ArgumentParser):
    """argparse's parser with errors of one line, "did you mean", and no abbreviated options."""

    def __init__(self, **settings: Any) -> None:
        """Take what `argparse.ArgumentParser` takes."""
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{short(self.prog)}: {printable(message)} (--help lists what it takes)\n")

    def options(self) -> dict[str, argparse.Action]:
        """Return the options by each of their spellings."""
        return {spelling: action for action in self._actions for spelling in action.option_strings}

    def takes_several(self) -> bool:
        """Tell whether any number of positional arguments may be given."""
        return any(action.nargs == "*" for action in self._actions if not action.option_strings)

    def positional_choices(self) -> list[str]:
        """Return the choices of all positional arguments."""
        return [str(choice) for action in self._actions if not action.option_strings for choice in action.choices or ()]

    def require_known(self, arguments: Iterable[str]) -> None:
        """Exit with 2 at an option that does not exist, before argparse reports what else is missing."""
        known = self.options()
        for argument in arguments:
            if argument == "--":
                return
            option = argument.partition("=")[0]
            if option.startswith("--") and " " not in option and option not in known:
                self.error(f"unknown option {option}{suggestion(option, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = list(map(str, action.choices))
        hint = suggestion(str(value), choices) or f" (choose from {', '.join(choices)})"
        raise argparse.ArgumentError(action, f"invalid choice: {str(value)!r:.80}{hint}")


class Command(NamedTuple):
    """One command of a program."""

    function: str  # MODULE:NAME within the program's package
    summary: str

    def load(self, package: str, prefix: str = "", suffix: str = "") -> Callable[..., Any]:
        """Import the command's function, or one that is named after it."""
        module, name = self.function.split(":")
        loaded: Callable[..., Any] = getattr(import_module(f"{package}.{module}"), f"{prefix}{name}{suffix}")
        return loaded


@dataclass(frozen=True)
class Program:
    """A program of ours: how it is called, the package of its commands, and their table."""

    name: str
    package: str
    description: str
    commands: Mapping[str, Command]

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command that the arguments name; return its exit status, 1 where it failed.

        A mistake of the user and what the system refuses (a full disk, no permission, a package that is not installed)
        are reported in one line; a defect of ours ends in its traceback. Wrong usage exits with 2, as argparse does. A
        reader of our results through a pipe may close it early: that is no failure, and nothing is reported.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        called = f"{short(self.name)} {given[0]}" if given[:1] and given[0] in self.commands else short(self.name)
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and cleans up
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is in the background of a shell's script
                signal.signal(signal.SIGINT, signal.default_int_handler)
            options = self._parse(given)
            status: int = self.commands[options.pop("command")].load(self.package)(**options)
            sys.stdout.flush()
        except (FedppError, ImportError, MemoryError, OSError, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) and _reader_left():
                return 0
            message = _message(error)
            if message is None:
                raise
            print(f"{called}: {printable(message)}", file=sys.stderr)
            forget_interruption()
            return 2 if isinstance(error, UsageError) else 1
        return status

    def parsers(self, *loaded: str) -> tuple[Parser, Mapping[str, Parser]]:
        """Return the program's parser and those of its commands, which know the arguments of the loaded ones only."""
        parser = Parser(prog=self.name, description=self.description)
        parser.add_argument("--version", action=_Version, help="print the version of fedpp")
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, command in self.commands.items():
            added = commands.add_parser(name, help=command.summary, description=command.summary)
            if name in loaded:
                command.load(self.package, "add_", "_arguments")(added)
        return parser, commands.choices

    def _parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        parser, commands = self.parsers(*arguments[:1])
        chosen = commands.get(arguments[0], parser) if arguments else parser
        chosen.require_known(arguments[1:] if chosen is not parser else arguments[:1])
        if chosen.takes_several():  # argparse's own way would find none of them after an option
            options, rest = chosen.parse_known_intermixed_args(arguments[1:])
            options.command = arguments[0]
        else:
            options, rest = parser.parse_known_args(arguments)
        if rest:
            chosen.error(f"unrecognized arguments: {' '.join(rest)}")
        return vars(options)


class _Version(argparse.Action):
    """Prints the version, which is read when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"nargs": 0, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{short(parser.prog)} {fedpp.__version__}")
        parser.exit()


def short(name: str) -> str:
    """Return the name of a program, as its messages begin with it."""
    return name.removeprefix("python -m ")


def forget_interruption() -> None:
    """Let the process end with its own status after a caught `KeyboardInterrupt`.

    Python ends `python -m` by SIGINT if an interruption left an `eval` or `exec` of text, as imports use them, also if
    it was caught. The next such call that ends well takes that back.
    """
    eval("0")  # noqa: S307


def note(text: str) -> None:
    """Print a note on stderr."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def add_json(to: argparse.ArgumentParser) -> None:
    """Add the option of commands whose results a program may read."""
    to.add_argument("--json", dest="as_json", action="store_true", help="print one JSON value")


def add_default(to: Any, option: str, default: Any, text: str, kind: Callable[[str], Any] | Sequence[str]) -> None:
    """Add an option with a default, which its help names; `kind` reads its text, or lists its choices."""
    of = {"type": kind} if callable(kind) else {"choices": kind}
    to.add_argument(option, default=default, help=f"{text} (default: {default})", **of)


def _message(error: BaseException) -> str | None:
    """Return the line that reports an error, with what to do; None for a defect of ours."""
    if isinstance(error, FedppError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}; take smaller images or batches"
    if isinstance(error, ImportError):
        missing = (error.name or "").partition(".")[0]
        if missing in OURS or not isinstance(error, ModuleNotFoundError):
            return None
        return (
            f"the package {missing} is not installed for {sys.executable}: in a checkout, run `make .venv/installed` "
            "and use .venv/bin/python; else install fedpp with requirements.lock"
        )
    if isinstance(error, OSError):
        where = f" ({error.filename}): check the path and its permissions" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return ": ".join(("interrupted", *map(str, error.args)))  # Ctrl-C, with what to do next if a command says so


def load_tensorflow(*, deterministic: bool = False) -> None:
    """Load TensorFlow without the page that it prints, part of it before it reads its log level.

    If `deterministic`, the same computation gives the same bits on one machine.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    collecting = gc.isenabled()
    gc.disable()  # among a million new objects that all stay it takes a sixth of the time, and finds nothing
    try:
        import_module("keras")
        if deterministic:
            import_module("tensorflow").config.experimental.enable_op_determinism()
    finally:
        if collecting:
            gc.enable()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)


def add_declared(parser: Any, kind: type[Declared], names: Iterable[str], defaults: Mapping[str, Any] = {}) -> None:
    """Add options for declared fields, with their bounds and help. One that is not given is None."""
    for name in names:
        of = kind.declarations()[name]
        default = defaults.get(name, of.default)
        words = ",".join(map(str, default)) if isinstance(default, tuple) else default
        option, text = f"--{hyphenated(name)}", f"{of.help} (default: {words})"
        if of.rule.choices == (True, False):
            parser.add_argument(option, action="store_const", const=True, help=of.help)
        elif of.rule.choices:
            parser.add_argument(option, choices=of.rule.choices, help=text)
        else:
            parser.add_argument(option, type=partial(_declared, of.rule), help=text)


def _declared(rule: Rule, text: str) -> Any:
    try:
        return rule.accept(rule.kind(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {rule.allowed}, got {text!r:.60}") from None


def positive(text: str) -> int:
    """Return a whole number of at least 1, for argparse."""
    value: int = _declared(whole(1), text)
    return value


def natural(text: str) -> int:
    """Return a whole number of at least 0, for argparse."""
    value: int = _declared(whole(), text)
    return value


def rate(text: str) -> float:
    """Return a positive, finite number, for argparse."""
    return _number(text, "positive and finite", lambda value: 0 < value < inf)


def share(text: str) -> float:
    """Return a number above 0 and at most 1, for argparse."""
    return _number(text, "above 0 and at most 1", lambda value: 0 < value <= 1)


def sha256(text: str) -> str:
    """Return a SHA-256 in hex, for argparse."""
    if not is_hex(text):
        raise argparse.ArgumentTypeError(f"must be 64 hex digits in lower case, got {text!r:.80}")
    return text


def path(text: str) -> Path:
    """Return a path, for argparse; an empty one, of a shell variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("must name a file or a folder, got '': is a shell variable empty?")
    return Path(text)


def _number(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must be a number, {wanted}, got {text!r:.40}")
    return value


def _reader_left() -> bool:
    """Return whether the reader of our results has closed the pipe; if so, discard what is left of them."""
    watched = select.poll()
    try:
        watched.register(sys.stdout.fileno(), 0)
    except OSError:  # it is no file
        return False
    left = any(event & select.POLLERR for _, event in watched.poll(0))
    if left:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    return left
