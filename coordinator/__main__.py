"""`python -m coordinator`: run the SuperLink, enrol sites, and run federations. It works from the checkout.

Exit status 0: done; 1: failed, with one line on stderr; 2: wrong usage. Results go to stdout, notes and logs
to stderr. SuperLink is driven by Flower's own command line, through the connection that `up` writes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fedpp.cli import Parser, path, positive, run_command, share
from fedpp.config.run_config import WANTED_SENSITIVITY
from fedpp.errors import ConfigError, FederationError, KeyFileError

from .operator.address import Address, address, port
from .operator.bundle_build import bundle
from .operator.coordinator_certificates import Given
from .operator.flower_command import flower
from .operator.run_commands import run, status, stop
from .operator.superlink import CONNECTION, State
from .operator.superlink import up as run_superlink

IN_USE = "public key already in use"  # SuperLink's answer, in lower case


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    return run_command(_parser(), arguments)


def up(options: argparse.Namespace) -> int:
    """Run the coordinator until SIGTERM or Ctrl-C; the first time, make its certificates."""
    given = _given(options)

    def ready(address: Address, certificate: Path) -> None:
        if options.listen is None:
            print("note: without --listen HOST:PORT only this machine can reach the coordinator", file=sys.stderr)
        kind = "CA certificate" if given is None else "certificate"
        print(f"coordinator ready at {address}, {kind} {certificate}", flush=True)

    return run_superlink(
        options.state, port=options.port, listen=options.listen, names=options.name, given=given, ready=ready
    )


def _given(options: argparse.Namespace) -> Given | None:
    """Return the server certificate that was given, if one was; raise `ConfigError` for half of it."""
    if options.certificate is None and options.certificate_key is None:
        return None
    if options.certificate is None or options.certificate_key is None:
        raise ConfigError("--certificate and --certificate-key belong together: give both")
    if options.listen is None:
        raise ConfigError("--certificate is what sites see: give --listen HOST:PORT, too")
    if options.name:
        raise ConfigError("--name is for the certificate that is made here: leave it out with --certificate")
    return Given(options.certificate, options.certificate_key)


def enrol(options: argparse.Namespace) -> int:
    """Let the SuperNode with this public key join, under this name."""
    _require_node_key(options.public_key)
    state = State(options.state.resolve())
    try:
        answer = flower(
            state,
            "supernode",
            "register",
            str(options.public_key.resolve()),
            CONNECTION,
            "--name",
            options.site,
        )
    except FederationError as error:
        if IN_USE in str(error).lower():
            raise FederationError(
                f"the key {options.public_key} is enrolled already: its site may join, another site needs its own"
            ) from None
        raise
    print(f"enrolled {options.site} as node {answer['node-id']}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write report.json and report.html of a finished federation beside its federation.json."""
    from fedpp.reporting.report import summary

    from .operator.report_command import write

    print(summary(write(options.out, sensitivity=options.sensitivity, overwrite=options.overwrite)))
    print(f"report: {options.out / 'report.html'}")
    return 0


def _require_node_key(path: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"cannot read the public key {path}: {error.strerror}: name a site's node.pub") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KeyFileError(f"{path} is no ECDSA P-384 public key in SSH format: `fedpp-site identity` makes one")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m coordinator", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(run=function)
        if function not in {bundle, report}:
            added.add_argument("--state", type=path, required=True, help="the coordinator's folder")
        return added

    served = command(up)
    served.add_argument(
        "--port", type=port, default=8000, help="of SuperLink, on this machine's loopback (default 8000)"
    )
    served.add_argument(
        "--listen", type=address, metavar="HOST:PORT", help="where nginx lets the sites in, and nobody in to more"
    )
    served.add_argument(
        "--name",
        action="append",
        default=[],
        help="host name or IP address for the certificate; may be repeated",
    )
    served.add_argument(
        "--certificate", type=path, metavar="PEM", help="a server certificate for --listen, with its chain"
    )
    served.add_argument("--certificate-key", type=path, metavar="PEM", help="its private key, unencrypted")

    enrolled = command(enrol)
    enrolled.add_argument("public_key", metavar="PUBLIC_KEY", type=path, help="from `fedpp-site identity`")
    enrolled.add_argument("site", metavar="NAME")

    command(bundle).add_argument("--out", type=path, help="write the bundle to this new file, too")

    federated = command(run)
    federated.add_argument("config", nargs="?", type=path, metavar="CONFIG.yaml", help="settings, one a line")
    federated.add_argument("--domain", type=path, help="the key domain's card")
    federated.add_argument("--sites", type=positive, help="how many sites to wait for")
    federated.add_argument("--out", type=path, help="folder for federation.json and the model")
    federated.add_argument("--model", type=path, help="model.sealed or model.npz of an earlier run, to go on from")
    federated.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a run setting; may be repeated"
    )
    federated.add_argument("--resume", action="store_true", help="go on with the run in --out, if one was begun there")
    federated.add_argument("--json", action="store_true", help="print one JSON object")

    for about in (shown := command(status), command(stop)):
        about.add_argument("--out", type=path, help="results of the run that is meant (default: the last one begun)")
    shown.add_argument("--json", action="store_true", help="print one JSON object")

    reported = command(report)
    reported.add_argument("out", metavar="OUT", type=path, help="folder of the federation, from `run --out`")
    reported.add_argument("--overwrite", action="store_true", help="replace an earlier report in the folder")
    reported.add_argument(
        "--sensitivity",
        type=share,
        default=WANTED_SENSITIVITY,
        help="wanted on validation data: a threshold is chosen for it (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
