"""Which sites take part: those of the run's key domain that agree on the task."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.config import RunConfig
from fedpp.errors import FederationError
from fedpp.protocol import wire
from fedpp.protocol.site import SiteDescription

from .strategy import note

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Admission:
    """The admitted sites by node, in the order of their names, and why others were refused."""

    sites: Mapping[int, SiteDescription]
    refused: Mapping[str, str]  # name of the site, or "node N" -> reason


def admit(grid: Grid, config: RunConfig) -> Admission:
    """Ask every connected node what it is; raise `FederationError` if too few sites are admitted."""
    nodes = _wait_for_nodes(grid, config)
    questions = [
        Message(RecordDict(), dst_node_id=node, message_type=f"{MessageType.QUERY}.{wire.DESCRIBE}") for node in nodes
    ]
    described: dict[int, SiteDescription] = {}
    refused: dict[str, str] = {}
    for reply in grid.send_and_receive(questions, timeout=config.wait_seconds):
        node = reply.metadata.src_node_id
        try:
            described[node] = SiteDescription.from_mapping(dict(wire.content_of(reply)[wire.SITE]))
        except FederationError as error:
            refused[f"node {node}"] = str(error)
    admission = choose(described, refused, config)
    for site in admission.sites.values():
        note(f"admitted {site.name}: {site.sequences} sequences (train, validation, test)")
    for name, reason in admission.refused.items():
        note(f"refused {name}: {reason}")
    if len(admission.sites) < config.sites:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in admission.refused.items())
        raise FederationError(
            f"the run needs {config.sites} sites and admitted {len(admission.sites)}. {reasons or 'No other answered'}"
        )
    return admission


def choose(described: Mapping[int, SiteDescription], refused: Mapping[str, str], config: RunConfig) -> Admission:
    """Admit the sites of the run's domain that share the task of the first of them by name."""
    sites: dict[int, SiteDescription] = {}
    reasons = dict(refused)
    for node, site in sorted(described.items(), key=lambda item: (item[1].name, item[0])):
        first = next(iter(sites.values()), None)
        if site.domain != config.domain:
            reasons[site.name] = (
                f"its key domain is {site.domain[:16]}, this run is for {config.domain[:16]}: "
                "weights under different keys cannot be averaged"
            )
        elif site.name in {other.name for other in sites.values()}:
            reasons[f"{site.name} (node {node})"] = "another site joined under this name: give it a name of its own"
        elif first is not None and site.task() != first.task():
            reasons[site.name] = f"its task {site.task()} differs from {first.task()} of {first.name}: ingest alike"
        elif site.sequences[0] == 0:
            reasons[site.name] = "it has no sequence to train on"
        else:
            sites[node] = site
    return Admission(sites, reasons)


def _wait_for_nodes(grid: Grid, config: RunConfig) -> list[int]:
    deadline = time.monotonic() + config.wait_seconds
    nodes: list[int] = []
    while time.monotonic() < deadline:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= config.sites:
            return nodes
        time.sleep(POLL_SECONDS)
    raise FederationError(
        f"the run needs {config.sites} sites, {len(nodes)} connected within {config.wait_seconds:.0f} s: "
        "check that every site has joined"
    )
