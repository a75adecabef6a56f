"""Run the two real apps on Flower's simulation engine, with one vault process a site."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedpp.config import SiteConfig
from fedpp.errors import FederationError, VaultError
from fedpp.processes import QUIET_FLOWER
from fedpp.protocol.federation import FederationRecord

ROOT = Path(__file__).parents[1]
VAULT_SECONDS = 30.0


@contextmanager
def vaults(sites: Sequence[SiteConfig], domain_folder: Path, passphrase_file: Path) -> Iterator[None]:
    """Run one vault process a site, and stop them in the end."""
    # A pipe that nobody reads would fill and block.
    logs = [tempfile.TemporaryFile("w+") for _ in sites]  # noqa: SIM115  closed below
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "sites.cli", "vault", "--address", site.vault),
                *(
                    "--domain",
                    str(domain_folder.resolve()),
                    "--passphrase-file",
                    str(passphrase_file.resolve()),
                ),
                *("--dataset", str(site.dataset.resolve())),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        for site, log in zip(sites, logs, strict=True)
    ]
    try:
        for site, process, log in zip(sites, processes, logs, strict=True):
            if not (process.stdout and process.stdout.readline().startswith("vault ready")):
                process.wait()
                log.seek(0)
                reason = log.read().strip().splitlines()
                raise VaultError(f"the vault of {site.name} did not start: {''.join(reason[-1:])}")
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.communicate(timeout=VAULT_SECONDS)
        for log in logs:
            log.close()


def federate(sites: Sequence[SiteConfig], run: Mapping[str, str | int | float]) -> FederationRecord:
    """Run a federation of these sites, whose vaults are up, with this run configuration.

    Flower's simulated nodes know their number only, so the sites' addresses go through files, and the run
    configuration, which `run_simulation` cannot take, is put into the ServerApp's context here.
    """
    os.environ |= QUIET_FLOWER
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from coordinator.app import main
    from sites.app import SITES_FOLDER
    from sites.app import app as client_app

    logging.getLogger("flwr").setLevel(logging.ERROR)  # the apps tell the progress themselves
    server_app = ServerApp()

    @server_app.main()
    def configured(grid: Grid, context: Context) -> None:
        context.run_config.update(run)
        main(grid, context)

    with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
        for number, site in enumerate(sites):
            values = {name.replace("_", "-"): str(value) for name, value in asdict(site).items()}
            values |= {
                "dataset": str(site.dataset.resolve()),
                "evaluation-key": str(site.evaluation_key.resolve()),
            }
            (Path(folder) / f"{number}.json").write_text(json.dumps(values))
        os.environ[SITES_FOLDER] = folder
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        try:
            run_simulation(
                server_app,
                client_app,
                num_supernodes=len(sites),
                backend_config={
                    "init_args": {
                        "num_cpus": os.cpu_count() or 1,
                        "include_dashboard": False,
                        "log_to_driver": False,
                    },
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        finally:
            del os.environ[SITES_FOLDER]
    record = Path(str(run["out"])) / "federation.json"
    if not record.is_file():
        raise FederationError("the federation ended without a result: see the messages above")
    return FederationRecord.load(record)
