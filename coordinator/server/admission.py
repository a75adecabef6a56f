"""Admission of sites: those that prove membership of the run's key domain and have the task of the others."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES, RunConfig
from fedpp.config.task import LABELS_NEEDED
from fedpp.errors import FederationError
from fedpp.protocol import messages
from fedpp.protocol.membership import PROTOCOL, Proof, Run
from fedpp.protocol.participants import Participants
from fedpp.protocol.site_description import SiteDescription

POLL_SECONDS = 0.5
REPEAT_SECONDS = 60.0  # without a reply, until a node is sent the request again; doubled each time


@dataclass(frozen=True)
class Admission:
    """Admitted sites by node number, in the order of their names, and the refused nodes with the reason."""

    sites: Mapping[int, SiteDescription]
    participants: Participants
    refused: Mapping[str, str]  # `proved_name`, `claimed_name` or "node NAME" -> reason


class Admissions:
    """Requests for a description from each node that connects, at any time of a run; its reply admits or refuses it.

    A site must prove that it is a member of the run's domain, of `n` slots, and runs its app bundle. A node that was
    refused or has not replied gets another request when it reconnects.
    """

    def __init__(
        self, grid: Grid, run: Run, n: int, note: Callable[[str], None], tick: Callable[[], None] = lambda: None
    ) -> None:
        """Start without sites; `note` logs a line, and `tick` is called while sites are waited for."""
        self._tick = tick
        self._grid, self._run, self._n, self._note = grid, run, n, note
        self._request = messages.DescribeRequest(run.nonce, PROTOCOL).to_record()
        self._requested: dict[int, str] = {}  # node -> its activation at the time
        self._connected: set[int] = set()
        self._pending: dict[str, int] = {}  # message -> node
        self._repeat: dict[int, tuple[float, float]] = {}  # node -> when to repeat the request, and the delay
        self._described: dict[int, SiteDescription] = {}
        self._proofs: dict[int, Proof] = {}
        self._failed: dict[int, tuple[str, str]] = {}  # node -> its name, and the reason
        self._labels: dict[int, str] = {}
        self._noted: dict[str, str] = {}
        self.admitted = Admission({}, Participants(run.nonce, ()), {})

    @property
    def nonce(self) -> str:
        """Return the run's nonce."""
        return self._run.nonce

    def nodes(self) -> dict[str, int]:
        """Return the nodes of the admitted sites by name."""
        return {site.name: node for node, site in self.admitted.sites.items()}

    def wait(self, config: RunConfig, wanted: AbstractSet[str] = frozenset(), busy_seconds: float = 0.0) -> Admission:
        """Return the admission once there are enough sites; raise `FederationError` if there are too few in time.

        A refused site does not count: the others have until the deadline to join. A resumed run waits for the sites
        that it had, `wanted`, and is content with a quorum of them at the deadline. A site processes one request after
        another: a connected one has `busy_seconds` more to finish a request of a coordinator that crashed.
        """
        self._note(
            f"waiting for {config.sites} sites of domain {self._run.domain[:16]}, {config.wait_seconds:.0f} s at most"
        )
        deadline, noted = time.monotonic() + config.wait_seconds, False
        while True:
            chosen = self._choose()
            names = {site.name for site in chosen.sites.values()}
            enough = wanted <= names if wanted else len(names) >= config.sites
            if enough and not self._pending:
                break
            overtime = time.monotonic() - deadline
            if overtime >= 0 and (enough or not self._busy() or overtime >= busy_seconds):
                break
            if overtime >= 0 and not noted:
                more = f"waiting for {len(self._busy())} more, busy with an earlier request"
                self._note(f"{more}, {busy_seconds:.0f} s at most")
                noted = True
            self._tick()
            time.sleep(POLL_SECONDS)
        if not enough and not (wanted and len(names) >= config.min_sites()):
            raise FederationError(_too_few(chosen, config, connected=len(self._requested)))
        return self._admit(chosen)

    def poll(self) -> Admission:
        """Return the admission now, with the sites that joined and replied since the last one, without a wait."""
        return self._admit(self._choose(self.admitted.sites))

    def withdraw(self, before: Admission) -> None:
        """Restore an earlier admission."""
        self.admitted = before

    def _choose(self, already: Collection[int] = ()) -> Admission:
        """Send requests to new nodes, take the replies that are there, and log each new refusal."""
        self._connected = set(self._grid.get_node_ids())
        nodes = list(self._grid.get_nodes())
        joined = {node.node_id: node.last_activated_at for node in nodes}
        self._labels |= labels_of(nodes)
        kept = self._connected | set(already) | set(self._pending.values())
        anew = {node for node, when in self._requested.items() if joined.get(node, when) != when} - set(already)
        self._requested = {node: when for node, when in self._requested.items() if node in kept - anew}
        self._pending = {message: node for message, node in self._pending.items() if node not in anew}
        for node in sorted(self._connected - self._requested.keys()):
            self._requested[node] = joined.get(node, "")
            self._send(node, REPEAT_SECONDS)
        for node in sorted(self._busy()):
            if time.monotonic() >= self._repeat[node][0]:
                self._send(node, 2 * self._repeat[node][1])
        for reply in self._grid.pull_messages(list(self._pending)) if self._pending else ():
            if reply.metadata.reply_to_message_id in self._pending:  # otherwise it is a second reply
                node = self._pending[reply.metadata.reply_to_message_id]
                self._pending = {message: of for message, of in self._pending.items() if of != node}
                self._take(node, reply)
        chosen = choose(self._described, dict(self._failed.values()), self._n, already, self._labels)
        for name, reason in sorted(chosen.refused.items() - self._noted.items()):
            self._note(f"refused {name}: {reason}")
            self._noted[name] = reason
        return chosen

    def _send(self, node: int, seconds: float) -> None:
        """Send the request to a node; without a reply in so many seconds it may be lost."""
        sent = self._grid.push_messages([_message(node, self._request)])
        self._pending |= dict.fromkeys(filter(None, sent), node)
        self._repeat[node] = time.monotonic() + seconds, seconds

    def _busy(self) -> set[int]:
        """Return the nodes that are connected and have not replied."""
        return self._connected & set(self._pending.values())

    def _take(self, node: int, reply: Message) -> None:
        self._failed.pop(node, None)
        self._described.pop(node, None)
        name = label = self._labels.get(node, f"node {node}")
        try:
            content = messages.content_of(reply)
            site = SiteDescription.from_mapping(messages.record(content, messages.SITE, ConfigRecord))
            name = claimed_name(site.name, label)
            self._proofs[node] = proved(content, site, self._run)
            self._described[node] = site
        except FederationError as error:
            self._failed[node] = name, str(error)

    def _admit(self, chosen: Admission) -> Admission:
        for node, site in chosen.sites.items():
            if node not in self.admitted.sites:
                self._note(f"admitted {site.name}: {site.sequences} sequences (train, validation, test)")
        proofs = tuple(self._proofs[node] for node in chosen.sites)
        self.admitted = replace(chosen, participants=Participants(self._run.nonce, proofs))
        return self.admitted


def labels_of(nodes: Sequence[NodeInfo]) -> dict[int, str]:
    """Return how logs and records call each node: by the name that it was enrolled with, if no other node has it."""
    numbers = {node.name: node.node_id for node in nodes}
    names = Counter(node.name for node in nodes)
    return {number: f"node {name}" for name, number in numbers.items() if name and names[name] == 1}


def claimed_name(name: str, label: str) -> str:
    """Return how logs and records call a node that has not proved to be the site that it claims to be."""
    return f"{name} ({label}, not proved)"


def proved_name(name: str, label: str, *, alone: bool) -> str:
    """Return how they call a node that has proved to be this site, alone or beside other nodes of the same site."""
    return name if alone else f"{name} ({label})"


def proved(content: RecordDict, site: SiteDescription, run: Run) -> Proof:
    """Return a site's proof of membership; raise `FederationError` if it proves something else."""
    if site.domain != run.domain:
        raise FederationError(
            f"its key domain is {site.domain[:16]}, this run is for {run.domain[:16]}: "
            "weights under different keys cannot be averaged"
        )
    text = messages.record(content, messages.PROOF, ConfigRecord).get("proof")
    proof = Proof.from_json(text if isinstance(text, str) else "")
    proof.require(run)
    if proof.statement.site != site.name:
        raise FederationError(f"it calls itself {site.name}, and its certificate is for {proof.statement.site}")
    return proof


def choose(
    described: Mapping[int, SiteDescription],
    failed: Mapping[str, str],
    n: int,
    already: Collection[int] = (),
    labels: Mapping[int, str] = {},
) -> Admission:
    """Admit the proved sites with the most common task; of equally common ones, the first site's by name.

    Nodes in `already` stay admitted, whoever joins; their task is the run's.
    """
    candidates: dict[int, SiteDescription] = {}
    nodes = Counter(site.name for site in described.values())
    names = {
        node: proved_name(site.name, labels.get(node, f"node {node}"), alone=nodes[site.name] == 1)
        for node, site in described.items()
    }
    reasons = dict(failed)
    for node, site in sorted(described.items(), key=lambda item: (item[0] not in already, item[1].name, item[0])):
        if site.n != n:
            reasons[names[node]] = f"its rows are of {site.n} slots, the domain's of {n}: use one fedpp at all sites"
        elif not site.task.classes:
            reasons[names[node]] = f"its dataset has no labels: {LABELS_NEEDED}"
        elif len(site.task.classes) < 2 and not site.task.multi_label:
            reasons[names[node]] = "its dataset has one class: ingest it with labels of two or more"
        elif site.sequences[0] == 0:
            reasons[names[node]] = "it has no sequence to train on: ingest more patients"
        elif site.name in {other.name for other in candidates.values()}:
            reasons[names[node]] = "its site joined already: let one node join for a site"
        else:
            candidates[node] = site
    # One site must not be able to have the others refused: the most common task counts.
    tasks = Counter(site.task for node, site in candidates.items() if node in already or not already)
    task = max(tasks, key=tasks.__getitem__, default=None)
    sites: dict[int, SiteDescription] = {}
    examples = 0
    for node, site in candidates.items():
        if site.task != task:
            reasons[names[node]] = f"its data are {site.task}; the others' are {task}: ingest alike"
        elif examples + site.sequences[0] > MAX_EXAMPLES or len(sites) == MAX_SITES:
            most = f"{MAX_EXAMPLES}, or over {MAX_SITES} sites"
            reasons[names[node]] = f"with its {site.sequences[0]} training sequences the run has over {most}"
        else:
            sites[node], examples = site, examples + site.sequences[0]
    ordered = dict(sorted(sites.items(), key=lambda item: item[1].name))
    return Admission(ordered, Participants("", ()), reasons)


def _message(node: int, request: ConfigRecord) -> Message:
    return Message(
        RecordDict({messages.CONFIG: request}),
        dst_node_id=node,
        message_type=f"{MessageType.QUERY}.{messages.DESCRIBE}",
    )


def _too_few(admission: Admission, config: RunConfig, *, connected: int) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in admission.refused.items())
    no_other = "No other replied: see that every site has joined, and resume with run --resume"
    if connected >= config.sites:
        return f"the run needs {config.sites} sites and admitted {len(admission.sites)}. {reasons or no_other}"
    return (
        f"the run needs {config.sites} sites, {connected} connected within {config.wait_seconds:.0f} s: "
        f"check that every site has joined{reasons and '. '}{reasons}"
    )
