"""The commands of `python -m coordinator`: their arguments, and the calls of the modules that do the work."""

import argparse
from pathlib import Path

from fedpp.cli import add_json, note, path, positive, sha256, share
from fedpp.config.run_config import WANTED_SENSITIVITY
from fedpp.errors import ConfigError, FederationError, KeyFileError
from fedpp.texts import printable

from .address import Address, address, port

IN_USE = "public key already in use"  # SuperLink's reply, in lower case


def add_up_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `up`."""
    _add_state(to)
    to.add_argument("--port", type=port, default=8000, help="loopback port of the SuperLink (default: 8000)")
    to.add_argument(
        "--listen", type=address, metavar="HOST:PORT", help="address of nginx, which forwards the Fleet API alone"
    )
    to.add_argument(
        "--name", action="append", default=[], help="host name or IP address of the certificate; may be repeated"
    )
    to.add_argument("--certificate", type=path, metavar="PEM", help="server certificate for --listen, with its chain")
    to.add_argument("--certificate-key", type=path, metavar="PEM", help="its private key, unencrypted")


def up(
    *,
    state: Path,
    port: int,
    listen: Address | None,
    name: list[str],
    certificate: Path | None,
    certificate_key: Path | None,
) -> int:
    """Run the SuperLink until SIGTERM or Ctrl-C; create its certificates at the first start."""
    from .coordinator_certificates import Given
    from .superlink import up as run_superlink

    given = None
    if certificate is not None or certificate_key is not None:
        if certificate is None or certificate_key is None:
            raise ConfigError("--certificate and --certificate-key belong together: give both")
        if listen is None:
            raise ConfigError("--certificate is what sites see: give --listen HOST:PORT, too")
        if name:
            raise ConfigError("--name is for the certificate that is made here: leave it out with --certificate")
        given = Given(certificate, certificate_key)

    def ready(where: Address, trusted: Path) -> None:
        if listen is None:
            note("without --listen HOST:PORT only this machine can reach the coordinator")
        kind = "CA certificate" if given is None else "certificate"
        print(printable(f"coordinator ready at {where}, {kind} {trusted}"), flush=True)

    return run_superlink(state, port=port, listen=listen, names=name, given=given, ready=ready)


def add_enrol_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `enrol`."""
    _add_state(to)
    to.add_argument("public_key", metavar="PUBLIC_KEY", type=path, help="file node.pub from `fedpp-site identity`")
    to.add_argument("site", metavar="NAME", help="name of the site")


def enrol(*, state: Path, public_key: Path, site: str) -> int:
    """Admit the SuperNode with this public key, under this name."""
    from .flower_command import flower
    from .superlink import CONNECTION, State

    _require_node_key(public_key)
    key = str(public_key.resolve())
    try:
        reply = flower(State(state.resolve()), "supernode", "register", key, CONNECTION, "--name", site)
    except FederationError as error:
        if IN_USE in str(error).lower():
            raise FederationError(
                f"the key {public_key} is enrolled already: its site may join, another site needs its own"
            ) from None
        raise
    print(printable(f"enrolled {site} as node {reply['node-id']}"))
    return 0


def add_bundle_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `bundle`."""
    to.add_argument("--out", type=path, help="new file for the bundle")


def bundle(*, out: Path | None) -> int:
    """Print the SHA-256 of the bundle that `run` submits, for sites to compare and approve."""
    from .bundle_build import bundle as build

    return build(out)


def add_run_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    _add_state(to)
    to.add_argument("config", nargs="?", type=path, metavar="CONFIG.yaml", help="file of settings")
    to.add_argument("--domain", type=path, help="card of the key domain")
    to.add_argument("--sites", type=positive, help="number of sites to wait for")
    to.add_argument("--out", type=path, help="folder for federation.json and the model")
    to.add_argument(
        "--model",
        help="initial model: the digest of one that every site has endorsed; without secure aggregation a model.npz",
    )
    to.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="setting of the run; may be repeated",
    )
    to.add_argument("--resume", action="store_true", help="resume the run in --out, if one was started there")
    to.add_argument(
        "--nonce",
        type=sha256,
        help="nonce of a masked run whose folder was lost: --resume with its settings rebuilds it from the vaults",
    )
    to.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SITE",
        help="site that a resumed masked run leaves out, if the policies of the others allow it; may be repeated",
    )
    to.add_argument(
        "--burn",
        dest="burns",
        type=path,
        action="append",
        default=[],
        metavar="FILE",
        help="statements of a site of --without, from `fedpp-site burn --out`; may be repeated",
    )
    to.add_argument(
        "--lifted",
        action="append",
        default=[],
        metavar="SITE",
        help="site of --without that cannot burn, and whose lock the staff of all others lifted; may be repeated",
    )
    to.add_argument(
        "--with",
        dest="joining",
        action="append",
        default=[],
        metavar="SITE",
        help="site that joins a resumed masked run, if all policies allow it; may be repeated, and with --without of "
        "the same name replaces a restored site",
    )
    add_json(to)


def run(
    *,
    state: Path,
    config: Path | None,
    domain: Path | None,
    sites: int | None,
    out: Path | None,
    model: str | None,
    settings: list[str],
    resume: bool,
    without: list[str],
    burns: list[Path],
    lifted: list[str],
    joining: list[str],
    nonce: str | None,
    as_json: bool,
) -> int:
    """Run one federation on this checkout's code, wait for it, and print the final test metrics."""
    from .run_commands import run as run_federation
    from .run_commands import settings_of_file
    from .superlink import State

    given = settings_of_file(config) if config else {}
    named = {"domain": domain, "sites": sites, "out": out, "model": model}
    given |= {name: value for name, value in named.items() if value is not None}
    return run_federation(
        State(state.resolve()),
        given,
        settings,
        resume=resume,
        without=without,
        lifted=lifted,
        burns=burns,
        joining=joining,
        nonce=nonce,
        as_json=as_json,
    )


def add_status_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `status`."""
    add_stop_arguments(to)
    add_json(to)


def status(*, state: Path, out: Path | None, as_json: bool) -> int:
    """Show the progress of a run, which sites it waits for and which nodes are connected; live on a terminal."""
    from .run_commands import status as show_status
    from .superlink import State

    return show_status(State(state.resolve()), out, as_json=as_json)


def add_stop_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `stop`."""
    _add_state(to)
    to.add_argument("--out", type=path, help="results folder of the run (default: that of the last one started)")


def stop(*, state: Path, out: Path | None) -> int:
    """Stop the current run; `run --resume` continues it."""
    from .run_commands import stop as stop_run
    from .superlink import State

    return stop_run(State(state.resolve()), out)


def add_report_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    to.add_argument("out", metavar="OUT", type=path, help="folder of the federation, from `run --out`")
    to.add_argument("--overwrite", action="store_true", help="replace an earlier report in the folder")
    to.add_argument(
        "--sensitivity",
        type=share,
        default=WANTED_SENSITIVITY,
        help="sensitivity to reach on validation data: a threshold is chosen for it (default: %(default)s)",
    )


def report(*, out: Path, overwrite: bool, sensitivity: float) -> int:
    """Write report.json and report.html of a finished federation beside its federation.json."""
    from fedpp.reporting.report_summary import summary

    from .report_command import write

    print(summary(write(out, sensitivity=sensitivity, overwrite=overwrite)))
    print(printable(f"report: {out / 'report.html'}"))
    return 0


def _add_state(to: argparse.ArgumentParser) -> None:
    to.add_argument("--state", type=path, required=True, help="state folder of the coordinator")


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
