"""Simulated federation: the two real apps on Flower's simulation engine, with one vault process a site."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpp.cli import load_tensorflow
from fedpp.config.run_config import SITES_FOLDER, SiteConfig
from fedpp.errors import FederationError, VaultError
from fedpp.processes import ProcessGroup
from fedpp.protocol.run_record import RECORD, FederationRecord

ROOT = Path(__file__).parents[1]
VAULT_SECONDS = 30.0
RUN = "run.json"


@contextmanager
def vaults(sites: Sequence[SiteConfig], passphrase_file: Path) -> Iterator[None]:
    """Run one vault process a site for this block; a site's evaluation key is in its domain folder."""
    passphrase = ("--passphrase-file", str(passphrase_file.resolve()))
    with ExitStack() as stack:
        started = []
        for site in sites:
            folder = site.evaluation_key.parents[1].resolve()
            domain = ("--domain", str(folder))
            log = stack.enter_context(tempfile.TemporaryFile("w+"))  # an unread pipe would fill and block
            address = ("--address", site.vault, "--dataset", str(site.dataset.resolve()), "--policy", str(site.policy))
            kept = ("--audit-log", str(folder / "audit.log"))
            process = subprocess.Popen(
                [sys.executable, "-m", "sites", "vault", *address, *kept, *domain, *passphrase],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            stack.callback(_stop, process)
            started.append((site, process, log))
        for site, process, log in started:
            if not (process.stdout and process.stdout.readline().startswith("vault ready")):
                process.wait()
                log.seek(0)
                reason = log.read().strip().splitlines()
                raise VaultError(f"the vault of {site.dataset.name} did not start: {''.join(reason[-1:])}")
        yield


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=VAULT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def federate(sites: Sequence[SiteConfig], run: Mapping[str, str | int | float]) -> FederationRecord:
    """Run a federation of these sites, whose vaults are running, with this run configuration.

    Flower's engine and Ray run in a process group of their own, which ends with this process: by themselves they
    outlive a signal, or end with many tracebacks. Raises `KeyboardInterrupt` if a signal stopped the group.
    """
    with tempfile.TemporaryDirectory(prefix="fedpp-") as name:
        folder = Path(name)
        for number, site in enumerate(sites):
            paths: dict[str, Any] = {
                name: path.resolve() for name, path in vars(site).items() if isinstance(path, Path)
            }
            absolute = replace(site, **paths)
            (folder / f"{number}.json").write_text(json.dumps(absolute.to_mapping()))
        (folder / RUN).write_text(json.dumps({"nodes": len(sites), "run": dict(run)}))
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with ProcessGroup({SITES_FOLDER: name, "PYTHONPATH": path}, grace=0) as group:
            group.start([sys.executable, "-m", "simulations.simulated_federation", name])
            stopped = group.wait()
    if stopped:
        raise KeyboardInterrupt
    record = Path(str(run["out"])) / RECORD
    if not record.is_file():
        raise FederationError("the federation ended without a result: see the messages above")
    return FederationRecord.load(record)


def engine(folder: Path) -> None:
    """Run the two real apps on Flower's simulation engine, with the configuration in this folder's files.

    A simulated node of Flower knows only its number, so the sites' configurations are in files. `run_simulation` takes
    no run configuration, so it is put into the ServerApp's context here.
    """
    load_tensorflow()  # as flwr.simulation does, but quietly
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from coordinator.server.app import main
    from sites.client.app import app as client_app

    logging.getLogger("flwr").setLevel(logging.ERROR)  # the apps report progress themselves
    configuration = json.loads((folder / RUN).read_text())
    server_app = ServerApp()

    @server_app.main()
    def configured(grid: Grid, context: Context) -> None:
        context.run_config.update(configuration["run"])
        main(grid, context)

    resources: dict[str, Any] = {"num_cpus": os.cpu_count() or 1, "include_dashboard": False, "log_to_driver": False}
    run_simulation(
        server_app,
        client_app,
        num_supernodes=configuration["nodes"],
        backend_config={"init_args": resources, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    engine(Path(sys.argv[1]))
