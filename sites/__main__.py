"""Where `fedpp-site` starts: before anything else is imported it knows what Ctrl-C and SIGTERM are to do.

Python's own answer to Ctrl-C is a traceback, and imports take a while.
"""

import os
import signal
import sys
from importlib import import_module
from threading import Timer
from typing import NoReturn


def main() -> NoReturn:
    """Run one command of `sites.cli.site_cli`, and exit."""
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is in the background of a shell's script
        signal.signal(signal.SIGINT, _end)
    sys.unraisablehook = _unraisable
    cli = import_module(f"{__package__}.cli.site_cli")  # another package's in a checkout than where it is installed
    status: int = 1
    try:
        status = cli.main()
    except KeyboardInterrupt:  # beside the command's own answer to it
        print("fedpp-site: interrupted", file=sys.stderr)
        eval("0")  # noqa: S307  as in `fedpp.cli.forget_interruption`
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the command is done, and its results are printed
    sys.exit(status)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Interrupt again where Python could not raise it, as in a callback of an import."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _end(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"fedpp-site: interrupted\n")
    os._exit(1)


if __name__ == "__main__":
    main()
