"""Requests to all members of a masked run, until each of them has done its part of a phase.

A sum has the updates of all members, so no phase ends without one of them. Where members are offline, refuse or are
late, the run pauses: requests are repeated for a bounded time, and after that its operator resumes the run.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import DEFAULT_TTL, Message, RecordDict
from flwr.serverapp import Grid

from coordinator.server.admission import Admissions
from coordinator.server.exchange import Exchange
from coordinator.server.progress import Phase, ProgressFile, SiteStatus
from coordinator.server.run_state import RunState
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, ForkError
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.run_statements import SignedStatement

from .statement_store import Cohort, StatementStore

PAUSE_SECONDS = 10.0  # for which replies are waited for at a time, while the run is paused
REPEAT_SECONDS, MAX_REPEAT_SECONDS = 1.0, 60.0  # until a refused request is repeated; doubled each time


class NewStatementsError(Exception):
    """Members sent statements of later phases that the journal lacked: another phase is due."""


@dataclass(frozen=True)
class PhaseRequest:
    """Request of one phase to the members, which of them have not replied, and what keeps a reply."""

    what: str  # for people
    phase: Phase
    number: int  # of the round
    kind: str  # Flower's type of the messages
    statements: Sequence[SignedStatement]  # that each member is sent
    missing: Callable[[], AbstractSet[str]]  # members that have not done their part
    content: Callable[[Sequence[str]], RecordDict]  # of the request with these statements
    take: Callable[[str, RecordDict], None]  # keeps a member's reply, or raises `FederationError`
    enough: int  # members that must do their part


@dataclass
class _Lack:
    """What a member lacks that has not done its part, and when its request may be repeated."""

    reason: str = "no reply"
    again: float = 0.0  # earliest time of the next request
    delay: float = 0.0
    quick: bool = False  # the next request may follow at once, with what it lacks
    places: Mapping[str, int] | None = None  # from which it lacks statements
    state: bool = False  # it lacks the certified state
    contract: bool = False  # its app lacks the contract


class CohortRequests:
    """The members of a run at their nodes."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        admissions: Admissions,
        folder: RunState,
        progress: ProgressFile,
        store: StatementStore,
        cohort: Cohort,
    ) -> None:
        """Take the members that are admitted; others may come while the run is paused."""
        self._cohort = cohort
        self._grid, self._config, self._admissions = grid, config, admissions
        self._folder, self._progress, self._store = folder, progress, store
        self._exchange = Exchange(grid, folder.require_not_stopped)
        self._ttl = max(DEFAULT_TTL, config.rounds * config.round_seconds + config.wait_seconds)
        self._lacks: dict[str, _Lack] = {}
        self._compared: set[str] = set()  # phases in which the members' statements were compared with those here
        self._names: dict[int, str] = {}  # node -> member, of the requests of this phase

    def nodes(self) -> dict[str, int]:
        """Return the node of each member that is admitted."""
        names = self._store.chains.contract.names
        return {name: node for name, node in self._admissions.nodes().items() if name in names}

    def carry_out(self, request: PhaseRequest) -> None:
        """Send a phase's request to the members until all have done their part, or enough when the time is over.

        Raises `FederationError` if the run was paused for as long as it may be, `ForkError` for a member that signed
        two statements of which it may sign one, and `NewStatementsError` where the members know more than this journal.
        """
        missing = request.missing()
        if not missing:
            return
        self._lacks, self._names = {}, {}
        names = self._store.chains.contract.names
        self._progress.update(
            phase=request.phase,
            sites={name: "pending" if name in missing else "replied" for name in names},
            deadline=time.time() + self._config.round_seconds,
        )
        self._send(request, missing)
        self._receive(request, self._config.round_seconds)
        if self._needs_more(request):
            self._pause(request)
        self._exchange.abandon()

    def reply_of(self, site: str, kind: str, content: RecordDict) -> RecordDict:
        """Return a member's reply to a request of its own; raise `FederationError` if it has none in time."""
        node = self.nodes().get(site)
        if node is None:
            raise FederationError("it is offline")
        exchange = Exchange(self._grid, self._folder.require_not_stopped)
        exchange.send([self._message(node, kind, content)])
        for _, reply in exchange.replies(self._config.round_seconds):
            return messages.content_of(reply)
        raise FederationError("no reply in time")

    def compared(self) -> list[SignedStatement]:
        """Take what the members have signed that is not known here, as after a lost disk; return it."""
        where = masked_messages.WhereRequest(self._store.chains.contract.nonce)
        new: list[SignedStatement] = []
        for name in self.nodes():
            with suppress(FederationError):
                content = self.reply_of(name, masked_messages.WHERE, RecordDict({messages.CONFIG: where.to_record()}))
                texts = masked_messages.statements_of(content)
                new += self._store.add_all([SignedStatement.from_json(text) for text in texts])
        return new

    def sealed_state(self, site: str) -> bytes:
        """Return the newest state of a member, sealed; raise `FederationError` if it sends none."""
        request = masked_messages.ContractRequest(self._store.chains.contract.digest)
        content = RecordDict({messages.CONFIG: request.to_record()})
        return messages.state_of(self.reply_of(site, masked_messages.FETCH, content))

    def _needs_more(self, request: PhaseRequest) -> bool:
        return self._store.chains.contract.n - len(request.missing()) < request.enough

    def _pause(self, request: PhaseRequest) -> None:
        """Repeat the request to missing members until enough have done their part, for `wait_seconds` at most."""
        until, noted = time.monotonic() + self._config.wait_seconds, False
        while self._needs_more(request):
            if not noted and not self._can_make_up():
                noted = True
                self._folder.note(f"{request.what}: paused, {self._config.wait_seconds:.0f} s at most: {self._why()}")
                deadline = time.time() + self._config.wait_seconds
                self._progress.update(phase="paused", deadline=deadline, reason=self._why())
            left = until - time.monotonic()
            if left <= 0:
                raise FederationError(
                    f"{request.what}: paused for {self._config.wait_seconds:.0f} s, and still missing is "
                    f"{self._why()}: see that it runs, and resume with run --resume"
                )
            self._admissions.poll()
            self._make_up(request)
            self._receive(request, min(left, PAUSE_SECONDS))
            self._folder.require_not_stopped()
            if noted:
                self._progress.update(reason=self._why())
        if noted:
            self._progress.update(phase=request.phase, reason="")

    def _why(self) -> str:
        return ", ".join(f"{name} ({lack.reason})" for name, lack in sorted(self._lacks.items()))

    def _can_make_up(self) -> bool:
        """Tell whether all missing members lack something that they can be given now."""
        return all(lack.quick for lack in self._lacks.values())

    def _send(self, request: PhaseRequest, names: Iterable[str]) -> None:
        """Send the request to these members, as far as they are connected."""
        nodes, usual = self.nodes(), request.content([signed.to_json() for signed in request.statements])
        connected = {name: nodes[name] for name in sorted(names) if name in nodes}
        self._names |= {node: name for name, node in connected.items()}
        contents = {name: self._more(request, name) or usual for name in connected}
        self._exchange.send([self._message(node, request.kind, contents[name]) for name, node in connected.items()])
        pending = self._exchange.pending
        for name in names:
            if nodes.get(name) not in pending:
                self._failed(request, name, "offline", "it is offline")
            else:
                self._lacks.setdefault(name, _Lack())

    def _receive(self, request: PhaseRequest, seconds: float) -> None:
        """Take the replies that arrive in this time."""
        for node, reply in self._exchange.replies(seconds):
            name = self._names[node]
            if reply is None or messages.is_lost(reply):
                self._lacking(request, name, "its reply was lost")
            elif messages.is_offline(reply):
                self._failed(request, name, "offline", "it is offline")
            else:
                self._take(request, name, reply)
        for node in self._exchange.cut_short():
            self._lacking(request, self._names[node], "its reply was late")

    def _take(self, request: PhaseRequest, name: str, reply: Message) -> None:
        lack, places = self._lacks[name], masked_messages.missing_links(reply)
        if places is not None and places != lack.places:
            lack.places = places
            self._lacking(request, name, "it lacks earlier statements")
            return
        if masked_messages.lacks_state(reply) or masked_messages.lacks_contract(reply):
            lack.state, lack.contract = masked_messages.lacks_state(reply), masked_messages.lacks_contract(reply)
            self._lacking(request, name, f"it lacks the {'certified state' if lack.state else 'contract'}")
            return
        try:
            request.take(name, messages.content_of(reply))
        except ForkError:
            raise
        except FederationError as error:
            self._failed(request, name, "refused", str(error))
            self._compare(request)
        else:
            del self._lacks[name]
            self._progress.site(name, "replied")

    def _lacking(self, request: PhaseRequest, name: str, reason: str) -> None:
        """Record what a member lacks and can be sent at once; a second time for one reason, it has to wait."""
        lack = self._lacks[name]
        if lack.reason == reason:
            self._failed(request, name, "pending", reason)
        else:
            self._folder.note(f"{request.what}: {name}: {reason}")
            lack.reason, lack.quick, lack.again = reason, True, 0.0

    def _failed(self, request: PhaseRequest, name: str, status: SiteStatus, reason: str) -> None:
        """Log why a member has not done its part, if that is new; its request is repeated after a doubled delay."""
        lack = self._lacks.setdefault(name, _Lack())
        if lack.reason != reason:
            self._folder.note(f"{request.what}: {name}: {reason}")
        lack.delay = min(2 * lack.delay or REPEAT_SECONDS, MAX_REPEAT_SECONDS)
        lack.reason, lack.quick, lack.again = reason, False, time.monotonic() + lack.delay
        self._progress.site(name, status)

    def _make_up(self, request: PhaseRequest) -> None:
        """Send members what they lack, and repeat the requests that are due; wait a moment if there are none."""
        for name, lack in sorted(self._lacks.items()):
            if lack.state:
                lack.state = False
                self._load_state(request, name)
            if lack.contract:
                lack.contract = False
                self._send_contract(request, name)
        now, connected = time.monotonic(), set(self._grid.get_node_ids()) - self._exchange.pending
        nodes = self.nodes()
        due = [name for name, lack in self._lacks.items() if nodes.get(name) in connected and lack.again <= now]
        if due:
            self._send(request, due)
        elif not self._exchange.pending:
            time.sleep(min(REPEAT_SECONDS, PAUSE_SECONDS))

    def _more(self, request: PhaseRequest, name: str) -> RecordDict | None:
        """Return the request with the statements that a member lacks, or None if it lacks none."""
        lack = self._lacks.get(name)
        if lack is None or lack.places is None:
            return None
        chains = self._store.chains
        known = {signed.digest: signed for signed in request.statements}
        known |= {signed.digest: signed for signed in chains.after({**chains.places, **lack.places})}
        return request.content([signed.to_json() for signed in known.values()])

    def _compare(self, request: PhaseRequest) -> None:
        """After a phase's first refusal, fetch the statements that the journal lacks, as after the loss of a disk."""
        if request.what in self._compared:
            return
        self._compared.add(request.what)
        new = self.compared()
        if any(of.statement.round > request.number or of.statement.purpose == "step" for of in new):
            self._folder.note(f"{request.what}: the members have {len(new)} statements that were not known here")
            self._exchange.abandon()
            raise NewStatementsError

    def _load_state(self, request: PhaseRequest, name: str) -> None:
        """Send a member the certified state, sealed by another one."""
        statements = tuple(signed.to_json() for signed in request.statements)
        load = masked_messages.StatementsRequest(self._store.chains.contract.digest, statements)
        for other in sorted(self.nodes().keys() - {name}):
            try:
                state = masked_messages.sealed_state(self.sealed_state(other))
                content = RecordDict({messages.CONFIG: load.to_record(), messages.ARRAYS: state})
                self.reply_of(name, masked_messages.LOAD, content)
            except FederationError as error:
                self._failed(request, name, "refused", f"the state of {other}: {error}")
            else:
                self._folder.note(f"{request.what}: {name} has the certified state again, from {other}")
                self._lacks[name].again = 0.0
                return

    def _send_contract(self, request: PhaseRequest, name: str) -> None:
        """Send a member the contract again, of which its app keeps a copy."""
        try:
            self.reply_of(name, masked_messages.ACCEPT_RUN, contract_request(self._cohort))
        except FederationError as error:
            self._failed(request, name, "refused", f"the contract: {error}")

    def _message(self, node: int, kind: str, content: RecordDict) -> Message:
        return Message(content, dst_node_id=node, message_type=kind, ttl=self._ttl)


def contract_request(cohort: Cohort) -> RecordDict:
    """Return the content of the request to accept a contract."""
    certificates = tuple(certificate.to_json() for certificate in cohort.certificates)
    request = masked_messages.AcceptRunRequest(cohort.contract.to_json(), certificates)
    return RecordDict({messages.CONFIG: request.to_record()})
