"""Flower's SuperNode takes one question after another: here it answers the one that it has in hand, and no other.

Measured with 1.41: a question whose run ends while it is taken (its ServerApp was killed) is ignored, but its task is
there already, and is done. Its answer is then taken for the next question's, whose own waits for the question after
that, and so on: the site is one answer behind for as long as its SuperNode lives, and a run that waits for it hangs.
"""

from collections.abc import Callable
from typing import Any

from flwr.supercore.run import RunNotRunningException

from fedpp.errors import FederationError

Pull = Callable[..., int | None]
Push = Callable[..., None]


def one_at_a_time(pull: Pull, push: Push) -> tuple[Pull, Push]:
    """Return Flower's functions that take a question and send an answer, made to be of the same one."""
    in_hand = ""

    def pulled(
        *,
        receive: Callable[[], Any],
        pull_object: Callable[..., bytes],
        confirm_message_received: Callable[..., None],
        **rest: Any,
    ) -> int | None:
        def received() -> Any:
            nonlocal in_hand
            got = receive()
            in_hand = "" if got is None else got[0].metadata.message_id
            return got

        return pull(
            receive=received,
            pull_object=_or_fail(pull_object),
            confirm_message_received=_or_fail(confirm_message_received),
            **rest,
        )

    def pushed(*, state: Any, **rest: Any) -> None:
        push(state=state, **rest)  # waits for an answer, and forgets it with its question
        while in_hand in state.msg_store:
            push(state=state, **rest)

    return pulled, pushed


def _or_fail(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let a run that is over be an error: after one Flower takes back the task that it made."""

    def calling(*values: Any) -> Any:
        try:
            return call(*values)
        except RunNotRunningException:
            raise FederationError("its run is over") from None

    return calling
