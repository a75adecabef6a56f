"""A SuperNode answers the question that it has in hand, whatever became of those before: Flower's own state."""

from collections.abc import Callable
from threading import Timer
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message, _pull_and_store_message, _push_messages

from fedpp.flower.message_in_hand import one_at_a_time

RUN = 7


class SuperNode:
    """The two steps of Flower's loop, and what they work on."""

    def __init__(self, taken: Callable[..., Any], sent: Callable[..., Any]) -> None:
        objects = ObjectStoreFactory()
        self.state, self.store = NodeStateFactory(objects).state(), objects.store()
        self.state.store_run(Run.create_empty(RUN))
        self.sent: list[str] = []
        self._take, self._send = taken, sent

    def take(self, question: Message, *, over: bool = False) -> int | None:
        """Take a question, whose run may be over before that is confirmed."""
        contents = {name: each.deflate() for name, each in get_all_nested_objects(question).items()}

        def confirm(*_: object) -> None:
            if over:
                raise RunNotRunningException

        taken: int | None = self._take(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (question, get_object_tree(question)),
            get_run=None,
            get_fab=None,
            pull_object=lambda _, name: contents[name],
            confirm_message_received=confirm,
            trusted_entities=None,
        )
        return taken

    def answer(self, question: Message) -> None:
        """Answer as a launcher does."""
        _insert_message(Message(RecordDict(), reply_to=question), self.state, self.store)

    def send(self) -> None:
        """Send what is there to be sent."""

        def send(message: Message, *_: object) -> tuple[set[str], str]:
            self.sent.append(message.metadata.reply_to_message_id)
            return set(), ""

        self._send(state=self.state, object_store=self.store, send=send, push_object=None)


def question(text: str) -> Message:
    made = Message(RecordDict({"asked": ConfigRecord({"text": text})}), dst_node_id=1, message_type="query.describe")
    made.metadata.__dict__.update(_run_id=RUN, _src_node_id=1)
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


@pytest.fixture
def supernode(monkeypatch: pytest.MonkeyPatch) -> SuperNode:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    made = SuperNode(*one_at_a_time(_pull_and_store_message, _push_messages))
    monkeypatch.setattr(made.state, "get_message_processing_duration", lambda **_: 0.0)  # no launcher is timed here
    return made


def test_a_question_whose_run_is_over_leaves_no_task(supernode: SuperNode) -> None:
    """Its answer would be taken for that of the next question."""
    assert supernode.take(question("first"), over=True) is None
    assert supernode.state.msg_store == {}
    assert [task.status.status for task in supernode.state.get_tasks()] == ["finished"]
    assert supernode.take(question("second")) == RUN
    assert sorted(task.status.status for task in supernode.state.get_tasks()) == ["finished", "pending"]


def test_what_is_waited_for_is_the_answer_to_the_question_in_hand(supernode: SuperNode) -> None:
    """One to another question may come before: it is sent, and is not all."""
    stray, asked = question("stray"), question("asked")
    assert supernode.take(asked) == RUN
    supernode.answer(stray)
    answered = Timer(0.7, supernode.answer, (asked,))
    answered.start()
    supernode.send()
    answered.join()
    assert supernode.sent == [stray.object_id, asked.object_id]
    assert supernode.state.msg_store == {}
