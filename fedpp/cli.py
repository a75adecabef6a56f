"""How each of our programs runs one of its commands: an exit status, and one line on stderr where it failed."""

import argparse
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from math import inf, nan
from pathlib import Path
from typing import NoReturn

from fedpp.errors import FedppError
from fedpp.texts import printable
from fedpp.values import is_hex


def load_tensorflow(*, deterministic: bool = False) -> None:
    """Load TensorFlow without the page that it prints meanwhile, part of it before it reads its log level.

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


def positive(text: str) -> int:
    """Return a whole number of at least 1, for argparse."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Return a whole number of at least 0, for argparse."""
    return _whole(text, 0)


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


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r:.40}")
    return value


class Parser(argparse.ArgumentParser):
    """argparse's, but wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        program = self.prog.removeprefix("python -m ")
        self.exit(2, f"{program}: {message} (--help lists what it takes)\n")


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse the arguments and call the command's `run(options)`; return its exit status, 1 where it failed.

    A mistake of the user and what the system refuses (a full disk, no permission) end in one line; a defect of
    ours ends in its traceback. Wrong usage exits with 2, as argparse does. Who reads our results through a pipe may
    stop when he has seen enough: that is no failure, and nothing is said.
    """
    options = parser.parse_args(arguments)
    program = f"{parser.prog.removeprefix('python -m ')} {options.command}"
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and cleans up
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is in the background of a shell's script
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status: int = options.run(options)
        sys.stdout.flush()
    except FedppError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"{program}: not enough memory: {error}; take smaller images or batches", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 0
        where = f" ({printable(str(error.filename))}): check the path and its permissions" if error.filename else ""
        print(f"{program}: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 1
    return status


def _reader_left() -> bool:
    """Tell whether nobody reads our results any more; if so, what is left of them goes nowhere."""
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
