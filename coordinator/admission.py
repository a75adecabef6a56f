"""Which sites take part: those of the run's key domain that agree on the task."""

import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.cipher.params import DomainCard
from fedpp.config import RunConfig
from fedpp.errors import FederationError
from fedpp.network import Task
from fedpp.protocol import wire
from fedpp.protocol.membership import NONCE_BYTES, PROTOCOL, Proof
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription

from .strategy import note

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Admission:
    """The admitted sites by node, in the order of their names, and why others were refused."""

    sites: Mapping[int, SiteDescription]
    participants: Participants
    refused: Mapping[str, str]  # name of the site, or "node N" -> reason


def admit(grid: Grid, config: RunConfig, card: DomainCard, bundle: str) -> Admission:
    """Ask every node that connects what it is, until enough sites are admitted; raise `FederationError` if too few are.

    A site must prove that it is a member of the card's domain and runs this app bundle (its hash). One that cannot take
    part does not count: the others have until the deadline to join.
    """
    note(f"waiting for {config.sites} sites of domain {card.fingerprint[:16]}, {config.wait_seconds:.0f} s at most")
    deadline = time.monotonic() + config.wait_seconds
    nonce = secrets.token_hex(NONCE_BYTES)
    question = wire.DescribeRequest(nonce, PROTOCOL).to_record()
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
            node = pending.pop(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            name = f"node {node}"
            try:
                content = wire.content_of(reply)
                site = SiteDescription.from_mapping(wire.record(content, wire.SITE, ConfigRecord))
                name = site.name
                if site.domain == card.fingerprint:  # of another domain nothing need be proved: it is refused below
                    proofs[node] = proved(content, site, card, nonce, bundle)
                described[node] = site
            except FederationError as error:
                failed[name if name not in failed else f"{name} (node {node})"] = str(error)
        admission = choose(described, failed, card.fingerprint, Participants(nonce, ()))
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
    return replace(admission, participants=Participants(nonce, tuple(proofs[node] for node in admission.sites)))


def proved(content: RecordDict, site: SiteDescription, card: DomainCard, nonce: str, bundle: str) -> Proof:
    """Return a site's proof that it is the member that it says; raise `FederationError` if it is not."""
    text = wire.record(content, wire.PROOF, ConfigRecord).get("proof")
    proof = Proof.from_json(text if isinstance(text, str) else "")
    proof.require(card.certifying_key, card.fingerprint, nonce)
    if proof.statement.site != site.name:
        raise FederationError(f"it calls itself {site.name}, and its certificate is for {proof.statement.site}")
    if proof.statement.bundle != bundle:
        raise FederationError(
            f"it runs app bundle {proof.statement.bundle[:16]}, the coordinator {bundle[:16]}: run the same code"
        )
    return proof


def choose(
    described: Mapping[int, SiteDescription], failed: Mapping[str, str], domain: str, participants: Participants
) -> Admission:
    """Admit the sites of the run's domain that share the task of most of them, of the first by name if in doubt."""
    candidates: dict[int, SiteDescription] = {}
    reasons = dict(failed)
    for node, site in sorted(described.items(), key=lambda item: (item[1].name, item[0])):
        if site.domain != domain:
            reasons[site.name] = (
                f"its key domain is {site.domain[:16]}, this run is for {domain[:16]}: "
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
    return Admission(sites, participants, reasons)


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
