"""Asking sites until enough have answered: the deadline, the quorum, and who is left out, and why."""

import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, MaskError
from fedpp.protocol import messages
from fedpp.protocol.site_description import SiteDescription

from .exchange import Exchange
from .progress import ProgressFile
from .replies import UNKNOWN, MisfitError
from .run_state import RunState

Requests = Callable[[Iterable[int]], list[Message]]  # of nodes
Accept = Callable[[RecordDict, SiteDescription], None]

AWAY_SECONDS = 1.0  # between two looks at who is back


class Gathering:
    """The answers of one run's sites, each taken as it comes."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        folder: RunState,
        progress: ProgressFile,
        client_states: "ClientStateIndex",
        quarantined: Mapping[str, str],
    ) -> None:
        """Begin with those who were quarantined before; who lost what it held is asked again with it."""
        self._grid, self._exchange = grid, Exchange(grid, folder.require_going)
        self._config, self._folder, self._progress, self._client_states = config, folder, progress, client_states
        self.quarantined = dict(quarantined)  # site -> reason: it is asked nothing more in this run
        self.left_out: dict[str, str] = {}  # of the attempt that goes on
        self.late: set[int] = set()  # nodes that still work on a question of it, as far as is known

    def begin(self, left_out: Mapping[str, str]) -> None:
        """Begin an attempt at a round, of which these are left out."""
        self.left_out, self.late = dict(left_out), set()

    def gather(
        self,
        what: str,
        sites: Mapping[int, SiteDescription],
        questions: Requests,
        accept: Accept,
        least: int | None = None,
        times: int = 1,
    ) -> None:
        """Ask these sites, and give each answer to `accept`, until all have answered or the deadline is over.

        Where fewer than `least`, by default the quorum, were accepted, and who is away or late could make it, they are
        waited for, and who is back is asked again. The deadline is so many `times` a round's. Raises
        `FederationError` if they do not come.
        """
        accepted: set[int] = set()
        refused: set[int] = set()
        away: set[int] = set()
        again: set[int] = set()

        def hear(seconds: float) -> None:
            for node, answer in self._exchange.answers(seconds):
                name = sites[node].name
                if answer is None:
                    self._folder.note(f"{what}: {name} restarted, and is asked again")
                    self._exchange.ask(questions([node]))
                elif messages.lost_base(answer) and self._client_states.forget(name):
                    self._folder.note(f"{what}: {name} has lost the last model, and is sent it again")
                    self._exchange.ask(questions([node]))
                elif messages.is_lost(answer) and node not in again:
                    again.add(node)
                    self._folder.note(f"{what}: the answer of {name} was lost on its way, and it is asked again")
                    self._exchange.ask(questions([node]))
                else:
                    said = self._heard(what, sites[node], answer, accept)
                    (accepted if said == "answered" else away if said == "away" else refused).add(node)
                    self._progress.site(name, said)

        seconds = times * self._config.round_seconds
        self._progress.tell(deadline=time.time() + seconds)
        self._exchange.ask(questions(sites))
        away |= sites.keys() - self._exchange.unanswered  # SuperLink knows them no longer
        hear(seconds)
        quorum = self._config.min_sites() if least is None else least
        if len(accepted) < quorum <= len(accepted | away | self._exchange.unanswered):
            self._wait_for(what, quorum, accepted, away, questions, hear, sites)
        self.late |= self._exchange.unanswered
        for node in sorted(sites.keys() - accepted - refused, key=lambda node: sites[node].name):
            late = "no answer in time" if node in self._exchange.unanswered else "it is away"
            self._leave_out(what, sites[node], late)
            self._progress.site(sites[node].name, "late" if node in self._exchange.unanswered else "away")
        self._exchange.give_up()

    def _wait_for(
        self,
        what: str,
        quorum: int,
        accepted: set[int],
        away: set[int],
        questions: Requests,
        hear: Callable[[float], None],
        sites: Mapping[int, SiteDescription],
    ) -> None:
        until = time.monotonic() + self._config.wait_seconds
        missing = ", ".join(sorted(sites[node].name for node in away | self._exchange.unanswered))
        self._folder.note(
            f"{what}: {len(accepted)} of a quorum of {quorum} sites; waiting for {missing}, "
            f"{self._config.wait_seconds:.0f} s at most"
        )
        self._progress.tell(deadline=time.time() + self._config.wait_seconds)
        while len(accepted) < quorum <= len(accepted | away | self._exchange.unanswered):
            if time.monotonic() >= until:
                raise FederationError(
                    f"{what}: {len(accepted)} sites answered within {self._config.wait_seconds:.0f} s more, the quorum "
                    f"is {quorum}; missing are {missing}: see that they run, and go on with run --resume"
                )
            back = away & set(self._grid.get_node_ids())
            away -= back
            self._exchange.ask(questions(sorted(back)))
            hear(AWAY_SECONDS)
            if not self._exchange.unanswered:
                time.sleep(AWAY_SECONDS)
                self._folder.require_going()

    def _heard(self, what: str, site: SiteDescription, answer: Message, accept: Accept) -> str:
        """Take one answer; return what became of it, in a word."""
        if messages.is_away(answer):
            return "away"
        try:
            accept(messages.content_of(answer), site)
        except MisfitError as error:
            self.quarantined[site.name] = f"{what}: {error}"
            self._leave_out(what, site, str(error))
            self._folder.note(f"{site.name} is quarantined: it is asked nothing more in this run")
            return "quarantined"
        except (FederationError, MaskError) as error:
            self._leave_out(what, site, str(error))
            return "left out"
        return "answered"

    def _leave_out(self, what: str, site: SiteDescription, reason: str) -> None:
        self.left_out[site.name] = f"{what}: {reason}"
        self._folder.note(f"{what} of {site.name} left out: {reason}")


class ClientStateIndex:
    """Digests of states, by site and round."""

    def __init__(self) -> None:
        """Begin with nothing, as a coordinator that goes on does: a site that has a state is sent it once more."""
        self._held: dict[tuple[str, int], str] = {}

    def name(self, site: str, number: int, digest: str) -> None:
        """Take it that a site holds this state of a round."""
        self._held[site, number] = digest

    def base(self, site: str, number: int, digest: str) -> str:
        """Return by which digest a site knows the state of a round, or nothing if it must be sent it.

        Of the first one, sealed, the coordinator itself does not know the digest.
        """
        held = self._held.get((site, number), "")
        return held if digest in {held, UNKNOWN} else ""

    def forget(self, site: str) -> bool:
        """Take it that a site holds nothing; tell whether it was taken to hold something."""
        lost = [held for held in self._held if held[0] == site]
        for held in lost:
            del self._held[held]
        return bool(lost)

    def prune(self, number: int) -> None:
        """Forget what was before this round."""
        self._held = {(site, of): digest for (site, of), digest in self._held.items() if of >= number}
