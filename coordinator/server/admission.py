"""Which sites take part: those of the run's key domain that agree on the task."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.config.model_spec import Task
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES, RunConfig
from fedpp.errors import FederationError
from fedpp.protocol import messages
from fedpp.protocol.membership import PROTOCOL, Proof, Run
from fedpp.protocol.participants import Participants
from fedpp.protocol.site_description import SiteDescription

POLL_SECONDS = 0.5
AGAIN_SECONDS = 60.0  # after which a node is asked again that has not answered, and then after twice as long, and so on


@dataclass(frozen=True)
class Admission:
    """The admitted sites by node, in the order of their names, and why others were refused."""

    sites: Mapping[int, SiteDescription]
    participants: Participants
    refused: Mapping[str, str]  # as `called`, `claimed` or "node N" names it -> reason


class Admissions:
    """Asks every node that connects what it is, and admits or refuses it by its first answer, at any time of a run.

    A site must prove that it is a member of the run's domain, of `n` slots, and runs its app bundle. A node that was
    refused, or has not answered, is asked again when it was away and is back.
    """

    def __init__(
        self, grid: Grid, run: Run, n: int, note: Callable[[str], None], tick: Callable[[], None] = lambda: None
    ) -> None:
        """Begin with nobody; `note` tells the user, and `tick` is called while sites are waited for."""
        self._tick = tick
        self._grid, self._run, self._n, self._note = grid, run, n, note
        self._question = messages.DescribeRequest(run.nonce, PROTOCOL).to_record()
        self._asked: dict[int, str] = {}  # node -> when it had joined
        self._connected: set[int] = set()
        self._pending: dict[str, int] = {}  # message -> node
        self._again: dict[int, tuple[float, float]] = {}  # node -> when to ask again, and how long after the last time
        self._described: dict[int, SiteDescription] = {}
        self._proofs: dict[int, Proof] = {}
        self._failed: dict[int, tuple[str, str]] = {}  # what it is called, and why
        self._told: dict[str, str] = {}
        self.admitted = Admission({}, Participants(run.nonce, ()), {})

    @property
    def nonce(self) -> str:
        """Return the run's nonce."""
        return self._run.nonce

    def wait(self, config: RunConfig, wanted: AbstractSet[str] = frozenset(), busy_seconds: float = 0.0) -> Admission:
        """Return who takes part as soon as they are enough; raise `FederationError` if they are too few in time.

        One that cannot take part does not count: the others have until the deadline to join. A run that goes on waits
        for the sites that it had, `wanted`, and takes a quorum of them in the end. A site answers one question after
        another: who is connected has so many seconds more to finish what it was asked by a coordinator that died.
        """
        self._note(
            f"waiting for {config.sites} sites of domain {self._run.domain[:16]}, {config.wait_seconds:.0f} s at most"
        )
        deadline, told = time.monotonic() + config.wait_seconds, False
        while True:
            chosen = self._choose()
            names = {site.name for site in chosen.sites.values()}
            enough = wanted <= names if wanted else len(names) >= config.sites
            if enough and not self._pending:
                break
            late = time.monotonic() - deadline
            if late >= 0 and (enough or not self._busy() or late >= busy_seconds):
                break
            if late >= 0 and not told:
                more = f"waiting for {len(self._busy())} more, at work on an earlier question yet"
                self._note(f"{more}, {busy_seconds:.0f} s at most")
                told = True
            self._tick()
            time.sleep(POLL_SECONDS)
        if not enough and not (wanted and len(names) >= config.min_sites()):
            raise FederationError(_too_few(chosen, config, connected=len(self._asked)))
        return self._admit(chosen)

    def poll(self) -> Admission:
        """Return who takes part now: who did, and who joined since and has answered; nobody is waited for."""
        return self._admit(self._choose(self.admitted.sites))

    def withdraw(self, before: Admission) -> None:
        """Go back to those who took part before."""
        self.admitted = before

    def _choose(self, already: Collection[int] = ()) -> Admission:
        """Ask who is new, take the answers that are there, and tell of each new refusal."""
        self._connected = set(self._grid.get_node_ids())
        joined = {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
        kept = self._connected | set(already) | set(self._pending.values())
        anew = {node for node, when in self._asked.items() if joined.get(node, when) != when} - set(already)
        self._asked = {node: when for node, when in self._asked.items() if node in kept - anew}
        self._pending = {message: node for message, node in self._pending.items() if node not in anew}
        for node in sorted(self._connected - self._asked.keys()):
            self._asked[node] = joined.get(node, "")
            self._ask(node, AGAIN_SECONDS)
        for node in sorted(self._busy()):
            if time.monotonic() >= self._again[node][0]:
                self._ask(node, 2 * self._again[node][1])
        for reply in self._grid.pull_messages(list(self._pending)) if self._pending else ():
            if reply.metadata.reply_to_message_id in self._pending:  # or else it is a second answer
                node = self._pending[reply.metadata.reply_to_message_id]
                self._pending = {message: of for message, of in self._pending.items() if of != node}
                self._take(node, reply)
        chosen = choose(self._described, dict(self._failed.values()), self._n, already)
        for name, reason in sorted(chosen.refused.items() - self._told.items()):
            self._note(f"refused {name}: {reason}")
            self._told[name] = reason
        return chosen

    def _ask(self, node: int, seconds: float) -> None:
        """Ask a node; if it has not answered in so long, the question may be lost."""
        asked = self._grid.push_messages([_question(node, self._question)])
        self._pending |= dict.fromkeys(filter(None, asked), node)
        self._again[node] = time.monotonic() + seconds, seconds

    def _busy(self) -> set[int]:
        """Return who is connected and has not answered yet."""
        return self._connected & set(self._pending.values())

    def _take(self, node: int, reply: Message) -> None:
        self._failed.pop(node, None)
        self._described.pop(node, None)
        name = f"node {node}"
        try:
            content = messages.content_of(reply)
            site = SiteDescription.from_mapping(messages.record(content, messages.SITE, ConfigRecord))
            name = claimed(site.name, node)
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
    text = messages.record(content, messages.PROOF, ConfigRecord).get("proof")
    proof = Proof.from_json(text if isinstance(text, str) else "")
    proof.require(run)
    if proof.statement.site != site.name:
        raise FederationError(f"it calls itself {site.name}, and its certificate is for {proof.statement.site}")
    return proof


def choose(
    described: Mapping[int, SiteDescription], failed: Mapping[str, str], n: int, already: Collection[int] = ()
) -> Admission:
    """Admit the sites, all proved, that share the task of most of them, of the first by name if in doubt.

    Nodes that take part already go on, whoever comes; their task is the run's.
    """
    candidates: dict[int, SiteDescription] = {}
    nodes = Counter(site.name for site in described.values())
    names = {node: called(site.name, node, alone=nodes[site.name] == 1) for node, site in described.items()}
    reasons = dict(failed)
    for node, site in sorted(described.items(), key=lambda item: (item[0] not in already, item[1].name, item[0])):
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
    tasks = Counter(Task.of(site) for node, site in candidates.items() if node in already or not already)
    task = max(tasks, key=tasks.__getitem__, default=None)
    sites: dict[int, SiteDescription] = {}
    examples = 0
    for node, site in candidates.items():
        if Task.of(site) != task:
            reasons[names[node]] = f"its data are {Task.of(site)}; the others' are {task}: ingest alike"
        elif examples + site.sequences[0] > MAX_EXAMPLES or len(sites) == MAX_SITES:
            most = f"{MAX_EXAMPLES}, or over {MAX_SITES} sites"
            reasons[names[node]] = f"with its {site.sequences[0]} training sequences the run has over {most}"
        else:
            sites[node], examples = site, examples + site.sequences[0]
    ordered = dict(sorted(sites.items(), key=lambda item: item[1].name))
    return Admission(ordered, Participants("", ()), reasons)


def _question(node: int, request: ConfigRecord) -> Message:
    return Message(
        RecordDict({messages.CONFIG: request}),
        dst_node_id=node,
        message_type=f"{MessageType.QUERY}.{messages.DESCRIBE}",
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
