"""`python -m coordinator`: run the SuperLink, enrol sites, and run federations. It works from the checkout.

Exit status 0: done; 1: failed, with one line on stderr; 2: wrong usage. Results go to stdout, notes and logs
to stderr. SuperLink is driven by Flower's own command line, through the connection that `up` writes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

from fedpp.command import Parser, path, run_command, share
from fedpp.config import WANTED_SENSITIVITY, RunConfig, to_toml
from fedpp.errors import ConfigError, FederationError, KeyFileError
from fedpp.processes import QUIET_FLOWER, ProcessGroup

from .bundle import CHECKOUT, built, bundle
from .superlink import CONNECTION, State
from .superlink import up as run_superlink

RECORD, MODELS = "federation.json", ("model.sealed", "model-before.sealed", "model.npz")
POLL_SECONDS = 1.0
REASON = "ServerApp failed with exception: "  # SuperLink's words before the exception's own
IN_USE = "public key already in use"  # SuperLink's answer, in lower case


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    return run_command(_parser(), arguments)


def up(options: argparse.Namespace) -> int:
    """Run the SuperLink until SIGTERM or Ctrl-C; the first time, make its certificates."""
    if options.host not in ("127.0.0.1", "::1", "localhost"):
        print(
            f"note: on {options.host}, whoever reaches port {options.port} can submit code to the sites and stop runs: "
            "let a firewall or proxy pass the sites' /v1/fleet/ alone (docs/deployment.md)",
            file=sys.stderr,
            flush=True,
        )
    return run_superlink(
        options.state,
        host=options.host,
        port=options.port,
        names=options.name,
        ready=lambda address, ca: print(f"coordinator ready at {address}, CA certificate {ca}", flush=True),
    )


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
            raise FederationError(f"the key {options.public_key} is enrolled already") from None
        raise
    print(f"enrolled {options.site} as node {answer['node-id']}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Run one federation on this checkout's code, wait for it, and print the final test metrics."""
    from fedpp.cipher.params import DomainCard

    from . import earlier_model

    state, out = State(options.state.resolve()), options.out.resolve()
    if any((out / name).exists() for name in (RECORD, *MODELS)):
        raise ConfigError(f"{out} holds a federation already: choose another --out, results are not overwritten")
    card = DomainCard.load(options.domain)
    if options.model is not None:
        earlier_model.read(options.model, card.fingerprint)  # a file that cannot be read must not cost a wait for sites
    config = run_config(
        options.set,
        {
            "card": card.to_json(),
            "sites": options.sites,
            "out": str(out),
            "initial": str(options.model.resolve()) if options.model else "",
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()  # a folder that cannot be written to must not cost a training
    with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
        overrides = Path(folder) / "run.toml"
        overrides.write_text(to_toml(config))
        status, reason = submit(state, overrides)
    if status != "finished:completed":
        raise FederationError(f"the run ended {status.removeprefix('finished:')}: {reason}")

    from fedpp.learning.metrics import metrics
    from fedpp.protocol.federation import FederationRecord
    from fedpp.protocol.finding_counts import FindingCounts

    record = FederationRecord.load(out / RECORD)
    tested = record.test_counts()
    figures, findings = metrics(tested).to_mapping(), {}
    if isinstance(tested, FindingCounts):
        of_each = zip(record.sites[0].classes, tested.findings, strict=True)
        findings = {name: metrics(counts).to_mapping() for name, counts in of_each}
    if options.json:
        print(json.dumps({**figures, "findings": findings} if findings else figures))
    else:
        shown = figures | {f"auc of {name}": of_one["auc"] for name, of_one in findings.items()}
        for name, value in shown.items():
            print(f"{name:{max(map(len, shown))}}  {'undefined' if value is None else f'{value:.4f}'}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write report.json and report.html of a finished federation beside its federation.json."""
    from fedpp.report import summary

    from .report import write

    print(summary(write(options.out, sensitivity=options.sensitivity, overwrite=options.overwrite)))
    print(f"report: {options.out / 'report.html'}")
    return 0


def submit(state: State, overrides: Path) -> tuple[str, str]:
    """Start a run with this TOML file of settings and follow its log on stderr; return its status and reason.

    SIGINT, SIGTERM or SIGHUP stop the run; its status is `finished:stopped` then.
    """
    with ProcessGroup(state.environment()) as group:
        run_id = flower(state, "run", str(CHECKOUT), CONNECTION, "--run-config", str(overrides))["run-id"]
        print(f"bundle {sha256(built()).hexdigest()}\nrun {run_id} started", file=sys.stderr)
        group.start(["flwr", "log", run_id, CONNECTION])
        group.wait()  # the log's stream ends with the run, but also when SuperLink does not answer for a moment
        return _wait_for_end(state, run_id, group.stopped)


def _wait_for_end(state: State, run_id: str, asked_to_stop: Event) -> tuple[str, str]:
    stopping = False
    while True:
        if asked_to_stop.is_set() and not stopping:
            with suppress(FederationError):  # it may have ended by itself just now; if not, it is asked again
                flower(state, "stop", run_id, CONNECTION)
                stopping = True
        described = flower(state, "list", CONNECTION, "--run-id", run_id)["runs"][0]
        if described["status"].startswith("finished"):
            break
        time.sleep(POLL_SECONDS)
    reason = described["status-details"].removeprefix(REASON).strip().partition("\n")[0]
    return described["status"], reason or "no reason was given; see the log above"


def flower(state: State, *arguments: str) -> dict[str, Any]:
    """Call a command of Flower that answers JSON; raise `FederationError` with its reason if it fails."""
    if not state.connection.exists():
        raise FederationError(f"{state.folder} is no coordinator's state: start one with `up --state {state.folder}`")
    done = subprocess.run(
        ["flwr", *arguments, "--format", "json"],
        env={**os.environ, **QUIET_FLOWER, **state.environment()},
        cwd=state.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C is for us alone
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"success": False, "error-message": done.stderr.strip() or done.stdout.strip()}
    if done.returncode == 0 and answer.get("success"):
        return answer
    message = " ".join(str(answer.get("error-message", "")).split())
    if "connection to the superlink is unavailable" in message.lower():
        raise FederationError(f"no SuperLink answers: start one with `python -m coordinator up --state {state.folder}`")
    raise FederationError(f"SuperLink refused `flwr {arguments[0]}`: {message or f'status {done.returncode}'}")


def run_config(settings: Sequence[str], given: Mapping[str, str | int]) -> dict[str, str | int | float]:
    """Return the overrides of a run's settings: `given`, and `name=value` texts typed like their defaults.

    Raises `ConfigError` for names that are unknown or given, and for values that do not fit.
    """
    defaults = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    overrides: dict[str, str | int | float] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in defaults or name in given:
            known = ", ".join(sorted(set(defaults) - set(given)))
            raise ConfigError(f"--set takes name=value with a name of {known}; got {setting!r}")
        kind = type(defaults[name])
        try:
            overrides[name] = _truth(text) if kind is bool else kind(text)
        except ValueError:
            raise ConfigError(f"run setting {name} must be {kind.__name__}, got {text!r}") from None
    overrides |= given
    RunConfig.from_mapping({**defaults, **overrides})
    return overrides


def _truth(text: str) -> bool:
    """Return what TOML calls a boolean; raise `ValueError`."""
    return ("false", "true").index(text) == 1


def _require_node_key(path: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"cannot read the public key {path}: {error.strerror}") from None
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
    served.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    served.add_argument("--port", type=int, default=8000)
    served.add_argument(
        "--name",
        action="append",
        default=[],
        help="host name or IP address for the certificate; may be repeated",
    )

    enrolled = command(enrol)
    enrolled.add_argument("public_key", metavar="PUBLIC_KEY", type=path, help="from `fedpp-site identity`")
    enrolled.add_argument("site", metavar="NAME")

    command(bundle).add_argument("--out", type=path, help="write the bundle to this new file, too")

    federated = command(run)
    federated.add_argument("--domain", type=path, required=True, help="the key domain's card")
    federated.add_argument("--sites", type=int, required=True, help="how many sites to wait for")
    federated.add_argument("--out", type=path, required=True, help="folder for federation.json and the model")
    federated.add_argument("--model", type=path, help="model.sealed or model.npz of an earlier run, to go on from")
    federated.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a run setting; may be repeated"
    )
    federated.add_argument("--json", action="store_true", help="print one JSON object")

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
