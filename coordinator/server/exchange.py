"""Questions to the sites and their answers, taken one at a time as they come: no more than one is in memory.

Flower's own `send_and_receive` holds all answers of a round, and waits three seconds between two looks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from fedpp.protocol import messages

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0  # between two looks at who restarted


class Exchange:
    """What was asked and has not been answered yet, by node; who answers too late is heard, and dropped.

    A node takes one question after another: whoever is at work on an earlier one yet is asked when that has come, or
    it would be at work on what nobody waits for any more, round after round.
    """

    def __init__(self, grid: Grid, tick: Callable[[], None]) -> None:
        """Begin with no question; `tick` is called while answers are waited for, and may raise to end that."""
        self._grid, self._tick = grid, tick
        self._asked: dict[str, int] = {}  # message -> node
        self._late: dict[str, int] = {}
        self._at_work: set[int] = set()  # who has answered nothing since it was late
        self._held: dict[int, Message] = {}  # questions to who is at work on an earlier one
        self._passed_over: set[int] = set()  # who was not asked for all of a deadline: the earlier one may be lost
        self._cut_short: set[int] = set()  # whose answers were on their way at the deadline
        self._activated: dict[int, str] = {}  # when each node that was asked had joined last
        self._looked = 0.0

    @property
    def unanswered(self) -> set[int]:
        """Return the nodes that have not answered."""
        return {*self._asked.values(), *self._held, *self._cut_short}

    def ask(self, messages: Iterable[Message]) -> None:
        """Send questions, all at once: what they have in common travels to SuperLink once."""
        busy, questions = self._at_work - self._passed_over, list(messages)
        held = {question.metadata.dst_node_id: question for question in questions}
        self._held |= {node: question for node, question in held.items() if node in busy}
        self._send([question for question in questions if question.metadata.dst_node_id not in busy])

    def _send(self, questions: Sequence[Message]) -> None:
        activated = self._activations()
        taken = set(self._grid.push_messages(questions)) if questions else set()
        for question in questions:
            if question.metadata.message_id in taken:  # or else SuperLink knows no such node, or no longer
                node = question.metadata.dst_node_id
                self._asked[question.metadata.message_id] = node
                self._activated[node] = activated.get(node, "")
                self._passed_over.discard(node)

    def answers(self, seconds: float) -> Iterator[tuple[int, Message | None]]:
        """Yield each node's answer as it comes, until all have answered or the time is over.

        None is yielded for a node that restarted: what it was asked is lost, and nobody would tell.
        """
        deadline = time.monotonic() + seconds
        while self._asked or self._held:
            came = False
            for message in list(self._asked):  # one by one: a pull brings all that is there into memory
                for answer in self._pull(message, deadline - time.monotonic()):
                    if messages.is_lost(answer) and time.monotonic() >= deadline:
                        self._cut_short.add(self._asked.pop(message))
                        continue
                    node = self._asked.pop(answer.metadata.reply_to_message_id, None)
                    if node is not None:  # or else it is a second answer
                        came = True
                        self._at_work.discard(node)
                        yield node, answer
                    del answer
            self._tick()
            if not came:
                if time.monotonic() >= deadline:
                    return
                yield from ((node, None) for node in self._restarted())
                self._drop_late()
                time.sleep(POLL_SECONDS)

    def give_up(self) -> None:
        """Wait no longer for who has not answered."""
        self._late |= self._asked
        self._at_work |= set(self._asked.values())
        self._passed_over |= self._held.keys()
        self._asked, self._held, self._cut_short = {}, {}, set()

    def _pull(self, message: str, seconds: float) -> Iterable[Message]:
        """Return the answer to a question if there is one, whose content may be on its way for so long.

        Flower gives an answer that a site has announced two hours to come, in which no other is heard.
        """
        http_grid.pull_objects = partial(pull_objects, max_time=seconds)  # type: ignore[attr-defined]
        return self._grid.pull_messages([message])

    def _restarted(self) -> list[int]:
        """Return, and forget, the nodes that joined anew since they were asked."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return []
        self._looked, activated = time.monotonic(), self._activations()
        asked = {node: message for message, node in self._asked.items()}
        lost = [node for node in asked if activated.get(node, self._activated[node]) != self._activated[node]]
        for node in lost:
            del self._asked[asked[node]]
        for message, node in list(self._late.items()):
            if activated.get(node, self._activated[node]) != self._activated[node]:
                self._free(message)
        return lost

    def _activations(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _drop_late(self) -> None:
        """Take a late answer from SuperLink, whose database would keep it for the run."""
        for message in list(self._late)[:1]:
            if list(self._pull(message, 0)):
                self._free(message)
            else:
                self._late[message] = self._late.pop(message)  # behind the others

    def _free(self, message: str) -> None:
        """Ask whoever is at work on this late question no longer what it was not asked yet."""
        node = self._late.pop(message)
        if node not in self._late.values():
            self._at_work.discard(node)
            if node in self._held:
                self._send([self._held.pop(node)])
