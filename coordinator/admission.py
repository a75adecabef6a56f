"""Which sites take part: those of the run's key domain that agree on the task."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.config import RunConfig
from fedpp.errors import FederationError
from fedpp.network import Task
from fedpp.protocol import wire
from fedpp.protocol.membership import PROTOCOL, Proof, Run
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription

from .strategy import note

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Admission:
    """The admitted sites by node, in the order of their names, and why others were refused."""

    sites: Mapping[int, SiteDescription]
    participants: Participants
    refused: Mapping[str, str]  # as `called`, `claimed` or "node N" names it -> reason


def admit(grid: Grid, config: RunConfig, run: Run, n: int) -> Admission:
    """Ask every node that connects what it is, until enough sites are admitted; raise `FederationError` if too few are.

    A site must prove that it is a member of the run's domain, of `n` slots, and runs its app bundle. One that cannot
    take part does not count: the others have until the deadline to join.
    """
    note(f"waiting for {config.sites} sites of domain {run.domain[:16]}, {config.wait_seconds:.0f} s at most")
    deadline = time.monotonic() + config.wait_seconds
    question = wire.DescribeRequest(run.nonce, PROTOCOL).to_record()
    asked: set[int] = set()
    pending: dict[str, int] = {}  # message -> node
    described: dict[int, SiteDescription] = {}
    proofs: dict[int, Proof] = {}
    failed: dict[str, str] = {}
    told: dict[str, str] = {}
    while True:
        for node in sorted(set(grid.get_node_ids()) - asked):
            asked.add(node)
            pending |= dict.fromkeys(filter(None, grid.push_messages([_question(node, question)])), node)
        for reply in grid.pull_messages(list(pending)) if pending else ():
            if reply.metadata.reply_to_message_id not in pending:
                continue  # a node is admitted or refused by its first answer
            node = pending.pop(reply.metadata.reply_to_message_id)
            name = f"node {node}"
            try:
                content = wire.content_of(reply)
                site = SiteDescription.from_mapping(wire.record(content, wire.SITE, ConfigRecord))
                name = claimed(site.name, node)
                proofs[node] = proved(content, site, run)
                described[node] = site
            except FederationError as error:
                failed[name] = str(error)
        admission = choose(described, failed, n)
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
    return replace(admission, participants=Participants(run.nonce, tuple(proofs[node] for node in admission.sites)))


def claimed(name: str, node: int) -> str:
    """Return what a node is called in notes and records that has not proved to be the site it says."""
    return f"{name} (node {node}, not proved)"


def called(name: str, node: int, *, alone: bool) -> str:
    """Return what a node is called that has proved to be this site, alone or beside other nodes of the same site."""
    return name if alone else f"{name} (node {node})"


def proved(content: RecordDict, site: SiteDescription, run: Run) -> Proof:
    """Return a site's proof that it is the member that it says; raise `FederationError` if it is not."""
    if site.domain != run.domain:
        raise FederationError(
            f"its key domain is {site.domain[:16]}, this run is for {run.domain[:16]}: "
            "weights under different keys cannot be averaged"
        )
    text = wire.record(content, wire.PROOF, ConfigRecord).get("proof")
    proof = Proof.from_json(text if isinstance(text, str) else "")
    proof.require(run)
    if proof.statement.site != site.name:
        raise FederationError(f"it calls itself {site.name}, and its certificate is for {proof.statement.site}")
    return proof


def choose(described: Mapping[int, SiteDescription], failed: Mapping[str, str], n: int) -> Admission:
    """Admit the sites, all proved, that share the task of most of them, of the first by name if in doubt."""
    candidates: dict[int, SiteDescription] = {}
    nodes = Counter(site.name for site in described.values())
    names = {node: called(site.name, node, alone=nodes[site.name] == 1) for node, site in described.items()}
    reasons = dict(failed)
    for node, site in sorted(described.items(), key=lambda item: (item[1].name, item[0])):
        if site.n != n:
            reasons[names[node]] = f"its rows are of {site.n} slots, the domain's of {n}: use one fedpp at all sites"
        elif len(site.classes) < (1 if site.multi_label else 2):
            reasons[names[node]] = f"its dataset has {len(site.classes)} classes: ingest it with labels of two or more"
        elif site.sequences[0] == 0:
            reasons[names[node]] = "it has no sequence to train on: ingest more patients"
        elif site.name in {other.name for other in candidates.values()}:
            reasons[names[node]] = "its site joined already: let one node join for a site"
        else:
            candidates[node] = site
    # One site alone must not turn the others away: the task of most of them counts.
    tasks = Counter(Task.of(site) for site in candidates.values())
    task = max(tasks, key=tasks.__getitem__, default=None)
    sites: dict[int, SiteDescription] = {}
    for node, site in candidates.items():
        if Task.of(site) == task:
            sites[node] = site
        else:
            reasons[names[node]] = f"its data are {Task.of(site)}; the others' are {task}: ingest alike"
    return Admission(sites, Participants("", ()), reasons)


def _question(node: int, request: ConfigRecord) -> Message:
    return Message(
        RecordDict({wire.CONFIG: request}), dst_node_id=node, message_type=f"{MessageType.QUERY}.{wire.DESCRIBE}"
    )


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
