"""The compose file of the documentation: closed containers, in step with the commands that they start."""

import re
from argparse import ArgumentParser
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from conftest import ROOT

from coordinator.__main__ import PROGRAM as COORDINATOR
from sites.cli.site_cli import PROGRAM as SITE

FOLDER = ROOT / "docs" / "compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PARSERS: dict[str, ArgumentParser] = {
    "coordinator": COORDINATOR.parsers(*COORDINATOR.commands)[0],
    "hospital": SITE.parsers(*SITE.commands)[0],
}


def stage(name: str) -> str:
    """Return a stage of the Dockerfile."""
    return next(
        part
        for part in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)
        if part.startswith(f"FROM python:3.11-slim-bookworm AS {name}\n")
    )


def options(service: str) -> dict[str, object]:
    """Parse a service's command; the file of the passphrase is a path as the others are."""
    target = SERVICES[service]["build"]["target"]
    given = vars(PARSERS[target].parse_args(SERVICES[service]["command"]))
    return given | {"passphrase": given["passphrase"].file} if "passphrase" in given else given


@pytest.mark.parametrize("service", SERVICES)
def test_the_services_start_commands_that_there_are(service: str) -> None:
    """Each command is one that the image's program takes; every path in it is mounted, and what is made can be."""
    entry = {"coordinator": '["python", "-m", "coordinator"]', "hospital": '["fedpp-site"]'}
    target = SERVICES[service]["build"]["target"]
    assert stage(target).rstrip().endswith(f"ENTRYPOINT {entry[target]}")
    given = options(service)
    mounts = {volume.split(":")[1]: volume.split(":")[2:] for volume in SERVICES[service]["volumes"]}
    paths = {name: value for name, value in given.items() if isinstance(value, PurePosixPath)}
    assert len(paths) == {"coordinator": 1, "vault": 6, "site": 5}[service]
    for name, value in paths.items():
        (mode,) = [mode for mount, mode in mounts.items() if value.is_relative_to(mount)]
        assert mode == ([] if name in {"state", "audit_log", "runs", "ca", "identity", "evaluation_key"} else ["ro"])


def test_nothing_of_the_vault_is_swapped() -> None:
    """The limit of memory and swap together is that of memory alone."""
    assert SERVICES["vault"]["memswap_limit"] == SERVICES["vault"]["mem_limit"] == "4g"


def test_vault_and_site_fit_together() -> None:
    """The site asks the vault where it listens, checks its health there, and sees none of its folders."""
    vault, site = SERVICES["vault"], SERVICES["site"]
    address = options("vault")["address"]
    assert options("site")["vault"] == address == vault["healthcheck"]["test"][-1]
    PARSERS["hospital"].parse_args(vault["healthcheck"]["test"][2:])
    shared = {volume.split(":")[0] for volume in vault["volumes"]} & {
        volume.split(":")[0] for volume in site["volumes"]
    }
    assert shared == {"./dataset", "./policy", "socket"}
    assert [service["user"] for service in (vault, site)] == ["21001:21000", "21002:21000"]
    assert site["depends_on"] == {"vault": {"condition": "service_healthy"}}
    for folder in ("2750 -o 21001 -g 21000 /run/fedpp", "0750 -o 21001 -g 21000 /var/log/fedpp"):
        assert f"install -d -m {folder}" in stage("hospital")


def test_the_containers_are_closed() -> None:
    """None has root or rights to gain, or writes beside its volumes; one port is open, and the vault has no network."""
    for service in SERVICES.values():
        assert service["user"].split(":")[0] not in {"0", "root"}
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "coordinator": [f"8443:{options('coordinator')['listen'].port}"]
    }
    assert {name for name, service in SERVICES.items() if service.get("network_mode") == "none"} == {"vault"}


def test_no_image_is_built_of_what_lies_beside_the_file() -> None:
    """The context is the whole checkout: secrets and data that are put beside the compose file are left out of it."""
    left_out = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    beside = {name.removeprefix("./") for name in mounted if name.startswith("./")}
    assert beside == {"secret", "dataset", "policy", "trainer", "exchange"}
    assert {f"docs/compose/{name}" for name in beside} <= set(left_out)


def test_the_hospital_has_no_coordinator() -> None:
    """Its image gets the wheel, not the checkout; the coordinator's gets nginx."""
    assert "COPY . " not in stage("hospital")
    assert "--editable" not in stage("hospital")
    assert "nginx-light" in stage("coordinator")
