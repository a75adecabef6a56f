"""Questions to the sites and their answers, taken one at a time as they come: no more than one is in memory.

Flower's own `send_and_receive` holds all answers of a round, and waits three seconds between two looks.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 0.2


class Exchange:
    """What was asked and has not been answered yet, by node; who answers too late is heard, and dropped."""

    def __init__(self, grid: Grid, tick: Callable[[], None]) -> None:
        """Begin with no question; `tick` is called while answers are waited for, and may raise to end that."""
        self._grid, self._tick = grid, tick
        self._asked: dict[str, int] = {}  # message -> node
        self._late: dict[str, int] = {}

    @property
    def unanswered(self) -> set[int]:
        """Return the nodes that have not answered."""
        return set(self._asked.values())

    def ask(self, messages: Iterable[Message]) -> None:
        """Send questions, all at once: what they have in common travels to SuperLink once."""
        questions = list(messages)
        taken = set(self._grid.push_messages(questions)) if questions else set()
        for question in questions:
            if question.metadata.message_id in taken:  # or else SuperLink knows no such node, or no longer
                self._asked[question.metadata.message_id] = question.metadata.dst_node_id

    def answers(self, seconds: float) -> Iterator[tuple[int, Message]]:
        """Yield each node's answer as it comes, until all have answered or the time is over."""
        deadline = time.monotonic() + seconds
        while self._asked:
            came = False
            for message in list(self._asked):  # one by one: a pull brings all that is there into memory
                for answer in self._grid.pull_messages([message]):
                    node = self._asked.pop(answer.metadata.reply_to_message_id, None)
                    if node is not None:  # or else it is a second answer
                        came = True
                        yield node, answer
                    del answer
            self._tick()
            if not came:
                if time.monotonic() >= deadline:
                    return
                self._drop_late()
                time.sleep(POLL_SECONDS)

    def give_up(self) -> None:
        """Wait no longer for who has not answered."""
        self._late |= self._asked
        self._asked = {}

    def _drop_late(self) -> None:
        """Take a late answer from SuperLink, whose database would keep it for the run."""
        for message in list(self._late)[:1]:
            node = self._late.pop(message)
            if not list(self._grid.pull_messages([message])):
                self._late[message] = node  # behind the others
