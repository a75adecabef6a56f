"""Which sites take part: those of the run's key domain that agree on the task."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.config import RunConfig
from fedpp.errors import FederationError
from fedpp.network import Task
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
    """Ask every node that connects what it is, until enough sites are admitted; raise `FederationError` if too few are.

    A site that cannot take part does not count: the others have until the deadline to join.
    """
    note(f"waiting for {config.sites} sites of domain {config.domain[:16]}, {config.wait_seconds:.0f} s at most")
    deadline = time.monotonic() + config.wait_seconds
    asked: set[int] = set()
    pending: dict[str, int] = {}  # message -> node
    described: dict[int, SiteDescription] = {}
    failed: dict[str, str] = {}
    told: dict[str, str] = {}
    while True:
        for node in sorted(set(grid.get_node_ids()) - asked):
            asked.add(node)
            pending |= dict.fromkeys(filter(None, grid.push_messages([_question(node)])), node)
        for reply in grid.pull_messages(list(pending)) if pending else ():
            node = pending.pop(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            try:
                answer = wire.record(wire.content_of(reply), wire.SITE, ConfigRecord)
                described[node] = SiteDescription.from_mapping(answer)
            except FederationError as error:
                failed[f"node {node}"] = str(error)
        admission = choose(described, failed, config)
        for name, reason in sorted(admission.refused.items() - told.items()):
            note(f"refused {name}: {reason}")
            told[name] = reason
        enough = len(admission.sites) >= config.sites
        if (enough and not pending) or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    if not enough:
        raise FederationError(_too_few(admission, config, connected=len(asked)))
    for site in admission.sites.values():
        note(f"admitted {site.name}: {site.sequences} sequences (train, validation, test)")
    return admission


def choose(described: Mapping[int, SiteDescription], failed: Mapping[str, str], config: RunConfig) -> Admission:
    """Admit the sites of the run's domain that share the task of most of them, of the first by name if in doubt."""
    candidates: dict[int, SiteDescription] = {}
    reasons = dict(failed)
    for node, site in sorted(described.items(), key=lambda item: (item[1].name, item[0])):
        if site.domain != config.domain:
            reasons[site.name] = (
                f"its key domain is {site.domain[:16]}, this run is for {config.domain[:16]}: "
                "weights under different keys cannot be averaged"
            )
        elif site.name in {other.name for other in candidates.values()}:
            reasons[f"{site.name} (node {node})"] = "another site joined under this name: give it a name of its own"
        elif len(site.classes) < (1 if site.multi_label else 2):
            reasons[site.name] = f"its dataset has {len(site.classes)} classes: ingest it with labels of two or more"
        elif site.sequences[0] == 0:
            reasons[site.name] = "it has no sequence to train on: ingest more patients"
        else:
            candidates[node] = site
    # One site alone must not turn the others away: the task of most of them counts.
    tasks = Counter((site.n, Task.of(site)) for site in candidates.values())
    slots, task = max(tasks, key=tasks.__getitem__, default=(0, None))
    sites: dict[int, SiteDescription] = {}
    for node, site in candidates.items():
        if (site.n, Task.of(site)) == (slots, task):
            sites[node] = site
        else:
            reasons[site.name] = (
                f"its data are {Task.of(site)}, of {site.n} slots; the others' are {task}, of {slots}: ingest alike"
            )
    return Admission(sites, reasons)


def _question(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=f"{MessageType.QUERY}.{wire.DESCRIBE}")


def _too_few(admission: Admission, config: RunConfig, *, connected: int) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in admission.refused.items())
    if connected >= config.sites:
        return (
            f"the run needs {config.sites} sites and admitted {len(admission.sites)}. {reasons or 'No other answered'}"
        )
    return (
        f"the run needs {config.sites} sites, {connected} connected within {config.wait_seconds:.0f} s: "
        f"check that every site has joined{reasons and '. '}{reasons}"
    )
