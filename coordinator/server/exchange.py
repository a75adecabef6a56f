"""Message exchange with the sites: requests to all of them at once, replies one at a time, so that one is in memory.

Flower's own `send_and_receive` holds all replies of a round, and waits three seconds between two polls.

`_pull` patches a private function of Flower, here and not in `fedpp.flower`, since this module travels in the bundle.
Needed until: `Grid.pull_messages` takes a time limit for the objects of a reply.
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
RESTART_POLL_SECONDS = 2.0  # between two checks for nodes that restarted


class Exchange:
    """Pending requests by node; replies after the deadline are taken from SuperLink and dropped.

    A node processes one request after another. So a busy node, which still works on an overdue request, is sent the
    next one when its overdue reply has arrived; otherwise it would work on abandoned requests, round after round.
    """

    def __init__(self, grid: Grid, tick: Callable[[], None]) -> None:
        """Start without requests; `tick` is called while replies are waited for, and may raise to end the wait."""
        self._grid, self._tick = grid, tick
        self._sent: dict[str, int] = {}  # message -> node
        self._overdue: dict[str, int] = {}
        self._busy: set[int] = set()  # nodes without a reply since one became overdue
        self._deferred: dict[int, Message] = {}  # requests to busy nodes
        self._skipped: set[int] = set()  # nodes busy until the deadline: the overdue request may be lost
        self._cut_short: set[int] = set()  # nodes whose reply was arriving at the deadline
        self._activated: dict[int, str] = {}  # node -> its last activation, as of its last request
        self._polled = 0.0

    @property
    def pending(self) -> set[int]:
        """Return the nodes that have not replied."""
        return {*self._sent.values(), *self._deferred, *self._cut_short}

    def send(self, requests: Iterable[Message]) -> None:
        """Send requests, all at once: content that they share travels to SuperLink once."""
        busy, requests = self._busy - self._skipped, list(requests)
        by_node = {request.metadata.dst_node_id: request for request in requests}
        self._deferred |= {node: request for node, request in by_node.items() if node in busy}
        self._push([request for request in requests if request.metadata.dst_node_id not in busy])

    def _push(self, requests: Sequence[Message]) -> None:
        activated = self._activations()
        pushed = set(self._grid.push_messages(requests)) if requests else set()
        for request in requests:
            if request.metadata.message_id in pushed:  # otherwise SuperLink does not know the node
                node = request.metadata.dst_node_id
                self._sent[request.metadata.message_id] = node
                self._activated[node] = activated.get(node, "")
                self._skipped.discard(node)

    def replies(self, seconds: float) -> Iterator[tuple[int, Message | None]]:
        """Yield each node with its reply, as it arrives, until all have replied or the time is over.

        None is yielded for a node that restarted: its request is lost, and Flower reports no error.
        """
        deadline = time.monotonic() + seconds
        while self._sent or self._deferred:
            arrived = False
            for message in list(self._sent):  # one by one: a pull loads all available replies
                for reply in self._pull(message, deadline - time.monotonic()):
                    if messages.is_lost(reply) and time.monotonic() >= deadline:
                        self._cut_short.add(self._sent.pop(message))
                        continue
                    node = self._sent.pop(reply.metadata.reply_to_message_id, None)
                    if node is not None:  # otherwise it is a second reply
                        arrived = True
                        self._busy.discard(node)
                        yield node, reply
                    del reply
            self._tick()
            if not arrived:
                if time.monotonic() >= deadline:
                    return
                yield from ((node, None) for node in self._restarted())
                self._drop_overdue()
                time.sleep(POLL_SECONDS)

    def cut_short(self) -> set[int]:
        """Return the nodes whose reply was still arriving when its time was over, and stop waiting for them."""
        nodes, self._cut_short = self._cut_short, set()
        return nodes

    def abandon(self) -> None:
        """Stop waiting for the pending replies."""
        self._overdue |= self._sent
        self._busy |= set(self._sent.values())
        self._skipped |= self._deferred.keys()
        self._sent, self._deferred, self._cut_short = {}, {}, set()

    def _pull(self, message: str, seconds: float) -> Iterable[Message]:
        """Return the reply to a request, if it is there; its content may take so many seconds to arrive.

        Flower gives an announced reply two hours, in which no other one is taken.
        """
        http_grid.pull_objects = partial(pull_objects, max_time=seconds)  # type: ignore[attr-defined]
        return self._grid.pull_messages([message])

    def _restarted(self) -> list[int]:
        """Return the nodes that were activated anew since their request, and forget the request."""
        if time.monotonic() - self._polled < RESTART_POLL_SECONDS:
            return []
        self._polled, activated = time.monotonic(), self._activations()
        sent = {node: message for message, node in self._sent.items()}
        lost = [node for node in sent if activated.get(node, self._activated[node]) != self._activated[node]]
        for node in lost:
            del self._sent[sent[node]]
        for message, node in list(self._overdue.items()):
            if activated.get(node, self._activated[node]) != self._activated[node]:
                self._release(message)
        return lost

    def _activations(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _drop_overdue(self) -> None:
        """Take an overdue reply from SuperLink, whose database would keep it for the run."""
        for message in list(self._overdue)[:1]:
            if list(self._pull(message, 0)):
                self._release(message)
            else:
                self._overdue[message] = self._overdue.pop(message)  # behind the others

    def _release(self, message: str) -> None:
        """Forget an overdue request; send its node the deferred one, if it has no other overdue."""
        node = self._overdue.pop(message)
        if node not in self._overdue.values():
            self._busy.discard(node)
            if node in self._deferred:
                self._push([self._deferred.pop(node)])
