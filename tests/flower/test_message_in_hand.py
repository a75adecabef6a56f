"""A SuperNode replies to the message that it took last, on Flower's own state, and soon asks for the next one."""

import inspect
import re
from collections.abc import Callable
from threading import Timer
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message, _pull_and_store_message, _push_messages

from fedpp.flower import message_in_hand
from fedpp.flower.message_in_hand import one_at_a_time, soon_again

RUN = 7


class SuperNode:
    """The two steps of Flower's loop, and what they work on."""

    def __init__(self, taken: Callable[..., Any], sent: Callable[..., Any]) -> None:
        objects = ObjectStoreFactory()
        self.state, self.store = NodeStateFactory(objects).state(), objects.store()
        self.state.store_run(Run.create_empty(RUN))
        self.sent: list[str] = []
        self._take, self._send = taken, sent

    def take(self, request: Message, *, over: bool = False) -> int | None:
        """Take a request; with `over` its run has ended before the receipt is confirmed."""
        contents = {name: each.deflate() for name, each in get_all_nested_objects(request).items()}

        def confirm(*_: object) -> None:
            if over:
                raise RunNotRunningException

        taken: int | None = self._take(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (request, get_object_tree(request)),
            get_run=None,
            get_fab=None,
            pull_object=lambda _, name: contents[name],
            confirm_message_received=confirm,
            trusted_entities=None,
        )
        return taken

    def reply(self, request: Message) -> None:
        """Reply as a launcher does."""
        _insert_message(Message(RecordDict(), reply_to=request), self.state, self.store)

    def send(self) -> None:
        """Send the replies that are there."""

        def send(message: Message, *_: object) -> tuple[set[str], str]:
            self.sent.append(message.metadata.reply_to_message_id)
            return set(), ""

        self._send(state=self.state, object_store=self.store, send=send, push_object=None)


def request(text: str) -> Message:
    made = Message(RecordDict({"request": ConfigRecord({"text": text})}), dst_node_id=1, message_type="query.describe")
    made.metadata.__dict__.update(_run_id=RUN, _src_node_id=1)
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def in_process(pull: Callable[..., Any], push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> SuperNode:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    made = SuperNode(pull, push)
    monkeypatch.setattr(made.state, "get_message_processing_duration", lambda **_: 0.0)  # no launcher is timed here
    return made


def statuses(supernode: SuperNode) -> list[str]:
    return sorted(task.status.status for task in supernode.state.get_tasks())


@pytest.fixture
def supernode(monkeypatch: pytest.MonkeyPatch) -> SuperNode:
    return in_process(*one_at_a_time(_pull_and_store_message, _push_messages), monkeypatch)


def test_a_request_whose_run_ended_leaves_no_task(supernode: SuperNode) -> None:
    """The reply of such a task would be taken for the reply to the next request."""
    assert supernode.take(request("first"), over=True) is None
    assert supernode.state.msg_store == {}
    assert statuses(supernode) == ["finished"]
    assert supernode.take(request("second")) == RUN
    assert statuses(supernode) == ["finished", "pending"]


def test_the_reply_waited_for_is_that_to_the_request_in_hand(supernode: SuperNode) -> None:
    """Replies to other requests may come first: each is sent, and the wait continues."""
    first, second, in_hand = request("first stray"), request("second stray"), request("in hand")
    assert supernode.take(in_hand) == RUN
    supernode.reply(first)
    replies = [Timer(0.7, supernode.reply, (second,)), Timer(1.4, supernode.reply, (in_hand,))]
    for reply in replies:
        reply.start()
    supernode.send()
    for reply in replies:
        reply.join()
    assert supernode.sent == [first.object_id, second.object_id, in_hand.object_id]
    assert supernode.state.msg_store == {}


def test_flower_itself_still_leaves_a_task_and_takes_any_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, Flower has mended both, and `message_in_hand` is needed no more."""
    supernode = in_process(_pull_and_store_message, _push_messages, monkeypatch)
    assert supernode.take(request("first"), over=True) is None
    assert statuses(supernode) == ["pending"]
    stray = request("stray")
    supernode.reply(stray)
    supernode.send()
    assert supernode.sent == [stray.object_id]


def test_after_a_reply_messages_are_asked_for_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first at short intervals, which grow up to Flower's own; without a reply before, Flower alone pauses."""
    pauses: list[float] = []
    monkeypatch.setattr(message_in_hand.time, "sleep", pauses.append)
    replies = iter([None, RUN, None, None, RUN, *[None] * 20])
    take, send = soon_again(lambda: next(replies), lambda: None)
    assert (take(), pauses) == (None, [])
    assert (take(), pauses) == (RUN, [])
    send()
    assert (take(), pauses) == (RUN, [0.25, 0.25 * 1.25])
    send()
    del pauses[:]
    assert take() is None
    assert pauses == [0.25 * 1.25**k for k in range(12)]
    assert take() is None
    assert len(pauses) == 12


def test_flower_itself_pauses_for_3_seconds() -> None:
    """It would be needless to ask sooner if Flower did."""
    loop = inspect.getsource(start_client_internal.start_client_internal)
    assert re.findall(r"time\.sleep\((.*)\)", loop) == [f"{message_in_hand.FLOWER_PAUSE_SECONDS:.0f}"]
