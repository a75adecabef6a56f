"""Loop of Flower's SuperNode: it replies to the message that it took last, and asks for the next one without delay.

In Flower 1.42, a message whose run ends while it is being pulled (its ServerApp was killed) is ignored, but its task
has been created already and runs. Its reply is taken for the reply to the next message, whose own reply is taken for
that to the message after, and so on: the site stays one reply behind as long as its SuperNode lives, and a run that
waits for it hangs.

Needed until: Flower discards the task of a message that it ignores, and sends replies by the message that they answer.

A SuperNode that gets no message sleeps for 3 s. A round with secure aggregation is three requests to each site, each
put as soon as all sites have replied to the one before: that pause is most of a round of a small model.

Needed until: Flower's SuperNode asks again sooner after a reply, or SuperLink holds the call until there is a message.
"""

import time
from collections.abc import Callable
from typing import Any

from flwr.supercore.run import RunNotRunningException

from fedpp.errors import FederationError

FIRST_PAUSE_SECONDS, FLOWER_PAUSE_SECONDS = 0.25, 3.0  # between two calls for a message
GROWTH = 1.25  # of the pause, from call to call: 12 calls in 11 s, and then one in 3 s

Pull = Callable[..., int | None]
Push = Callable[..., None]


def one_at_a_time(pull: Pull, push: Push) -> tuple[Pull, Push]:
    """Return Flower's functions that pull a message and push a reply, wrapped so that both concern the same message."""
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
        push(state=state, **rest)  # waits for a reply, sends it, and deletes it with its message
        while in_hand in state.msg_store:
            push(state=state, **rest)

    return pulled, pushed


def soon_again(pull: Pull, push: Push) -> tuple[Pull, Push]:
    """Return Flower's functions, wrapped: after a reply, messages are asked for at short and growing intervals."""
    pause = FLOWER_PAUSE_SECONDS

    def pulled(**given: Any) -> int | None:
        nonlocal pause
        while (run := pull(**given)) is None and pause < FLOWER_PAUSE_SECONDS:
            time.sleep(pause)
            pause *= GROWTH
        return run

    def pushed(**given: Any) -> None:
        nonlocal pause
        push(**given)
        pause = FIRST_PAUSE_SECONDS

    return pulled, pushed


def _or_fail(call: Callable[..., Any]) -> Callable[..., Any]:
    """Raise another error where the run has ended: after that one Flower finishes the task that it created."""

    def calling(*values: Any) -> Any:
        try:
            return call(*values)
        except RunNotRunningException:
            raise FederationError("its run is over") from None

    return calling
