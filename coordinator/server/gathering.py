"""Gathering replies: requests to the sites of a run until enough have replied, with deadline, quorum and exclusions."""

import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, MaskError
from fedpp.protocol import messages
from fedpp.protocol.site_description import SiteDescription

from .exchange import Exchange
from .progress import ProgressFile, SiteStatus
from .replies import MisfitError
from .run_state import RunState

Requests = Callable[[Iterable[int]], list[Message]]  # makes the requests to these nodes
Accept = Callable[[RecordDict, SiteDescription], None]  # takes a reply, or raises `FederationError` or `MaskError`

OFFLINE_SECONDS = 1.0  # between two checks whether an offline site is back


class Gathering:
    """Replies of one run's sites, each passed on as it arrives."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        folder: RunState,
        progress: ProgressFile,
        client_states: "ClientStateIndex",
        quarantined: Mapping[str, str],
    ) -> None:
        """Start with the sites that were quarantined before; a site that lost its state is sent it again."""
        self._grid, self._exchange = grid, Exchange(grid, folder.require_not_stopped)
        self._config, self._folder, self._progress, self._client_states = config, folder, progress, client_states
        self.quarantined = dict(quarantined)  # site -> reason: it gets no more requests in this run
        self.excluded: dict[str, str] = {}  # site -> reason, of the attempt in progress
        self.stragglers: set[int] = set()  # nodes that may still work on a request of it

    def start_attempt(self, excluded: Mapping[str, str]) -> None:
        """Start an attempt at a round from which these sites are excluded."""
        self.excluded, self.stragglers = dict(excluded), set()

    def gather(
        self,
        what: str,
        sites: Mapping[int, SiteDescription],
        requests: Requests,
        accept: Accept,
        min_replies: int | None = None,
        times: int = 1,
    ) -> None:
        """Send requests to these sites, and pass each reply to `accept`, until all have replied or the deadline.

        The deadline is `times` that of a round. If fewer than `min_replies` (default: the quorum) were accepted, and
        offline or slow sites could make up for it, they get `wait_seconds` more, and sites that come back get the
        request again. Raises `FederationError` if that does not help.
        """
        accepted: set[int] = set()
        failed: set[int] = set()
        offline: set[int] = set()
        repeated: set[int] = set()

        def take(seconds: float) -> None:
            for node, reply in self._exchange.replies(seconds):
                name = sites[node].name
                if reply is None:
                    self._folder.note(f"{what}: {name} restarted, and is sent the request again")
                    self._exchange.send(requests([node]))
                elif messages.lost_base(reply) and self._client_states.forget(name):
                    self._folder.note(f"{what}: {name} has lost the last model, and is sent it again")
                    self._exchange.send(requests([node]))
                elif messages.is_lost(reply) and node not in repeated:
                    repeated.add(node)
                    self._folder.note(f"{what}: the reply of {name} was lost, and is requested again")
                    self._exchange.send(requests([node]))
                else:
                    status = self._taken(what, sites[node], reply, accept)
                    (accepted if status == "replied" else offline if status == "offline" else failed).add(node)
                    self._progress.site(name, status)

        seconds = times * self._config.round_seconds
        self._progress.update(deadline=time.time() + seconds)
        self._exchange.send(requests(sites))
        offline |= sites.keys() - self._exchange.pending  # unknown to SuperLink
        take(seconds)
        quorum = self._config.min_sites() if min_replies is None else min_replies
        if len(accepted) < quorum <= len(accepted | offline | self._exchange.pending):
            self._wait_for(what, quorum, accepted, offline, requests, take, sites)
        self.stragglers |= self._exchange.pending
        for node in sorted(sites.keys() - accepted - failed, key=lambda node: sites[node].name):
            is_straggler = node in self._exchange.pending
            self._exclude(what, sites[node], "no reply in time" if is_straggler else "it is offline")
            self._progress.site(sites[node].name, "straggler" if is_straggler else "offline")
        self._exchange.abandon()

    def _wait_for(
        self,
        what: str,
        quorum: int,
        accepted: set[int],
        offline: set[int],
        requests: Requests,
        take: Callable[[float], None],
        sites: Mapping[int, SiteDescription],
    ) -> None:
        until = time.monotonic() + self._config.wait_seconds
        missing = ", ".join(sorted(sites[node].name for node in offline | self._exchange.pending))
        self._folder.note(
            f"{what}: {len(accepted)} of a quorum of {quorum} sites; waiting for {missing}, "
            f"{self._config.wait_seconds:.0f} s at most"
        )
        self._progress.update(deadline=time.time() + self._config.wait_seconds)
        while len(accepted) < quorum <= len(accepted | offline | self._exchange.pending):
            if time.monotonic() >= until:
                raise FederationError(
                    f"{what}: {len(accepted)} sites replied within {self._config.wait_seconds:.0f} s more, the quorum "
                    f"is {quorum}; missing are {missing}: see that they run, and resume with run --resume"
                )
            back = offline & set(self._grid.get_node_ids())
            offline -= back
            self._exchange.send(requests(sorted(back)))
            take(OFFLINE_SECONDS)
            if not self._exchange.pending:
                time.sleep(OFFLINE_SECONDS)
                self._folder.require_not_stopped()

    def _taken(self, what: str, site: SiteDescription, reply: Message, accept: Accept) -> SiteStatus:
        """Take one reply; return the site's status after it."""
        if messages.is_offline(reply):
            return "offline"
        try:
            accept(messages.content_of(reply), site)
        except MisfitError as error:
            self.quarantined[site.name] = f"{what}: {error}"
            self._exclude(what, site, str(error))
            self._folder.note(f"{site.name} is quarantined: it gets no more requests in this run")
            return "quarantined"
        except (FederationError, MaskError) as error:
            self._exclude(what, site, str(error))
            return "excluded"
        return "replied"

    def _exclude(self, what: str, site: SiteDescription, reason: str) -> None:
        self.excluded[site.name] = f"{what}: {reason}"
        self._folder.note(f"{what} of {site.name} excluded: {reason}")


class ClientStateIndex:
    """Index of the global states that each site holds, by round: a site that holds one is sent its digest alone."""

    def __init__(self) -> None:
        """Start empty, also after a resume: each site is then sent its state again."""
        self._held: dict[tuple[str, int], str] = {}

    def add(self, site: str, number: int, digest: str) -> None:
        """Record that a site holds this state of a round."""
        self._held[site, number] = digest

    def holds(self, site: str, number: int, digest: str) -> bool:
        """Tell whether a site holds this state of a round, so that it need not be sent."""
        return self._held.get((site, number)) == digest

    def forget(self, site: str) -> bool:
        """Record that a site holds nothing; tell whether it was recorded to hold something."""
        lost = [held for held in self._held if held[0] == site]
        for held in lost:
            del self._held[held]
        return bool(lost)

    def prune(self, number: int) -> None:
        """Forget the states of earlier rounds than this one."""
        self._held = {(site, of): digest for (site, of), digest in self._held.items() if of >= number}
