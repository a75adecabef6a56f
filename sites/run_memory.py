"""What a site remembers of a run, on its disk: it outlives the ClientApp, the SuperNode and the coordinator.

Flower gives each message a process of its own, and a run that goes on after the coordinator died another number. So
what must last is kept here, by the run's nonce: digests and validation losses of the states of the last two rounds that
this site computed itself, the verdict on the newest, and the last update as it was sent. The same question gets the
same answer, and costs no training.

An update under the domain mask is random bytes here as well; in clear it is what the trainer can compute anyway.
"""

import fcntl
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedpp.errors import FederationError
from fedpp.files import make_folder, replace
from fedpp.learning.global_state import GlobalState

MOST_RUNS = 8  # whose folders are kept
OF_A_RUN = re.compile("[0-9a-f]{32}")  # the name of a run's folder
_SUM_BYTES = 32

_log = logging.getLogger("fedpp.site")


class RunMemory:
    """The memory of one run, in a folder of its own.

    Of two rounds, since a round that the sites do not adopt is repeated from the round before. Of a round it is the
    last attempt that this site computed: the sites may have adopted a later one, which it missed, and no earlier one.
    """

    def __init__(self, work: Path, nonce: str) -> None:
        """Open the memory of this run, which the coordinator named, or begin it; the oldest ones are forgotten."""
        self._folder = work / "runs" / sha256(nonce.encode()).hexdigest()[:32]
        if not self._folder.exists():
            make_folder(self._folder, 0o700)
            # Nothing but what was made here is removed; this run's stays, even if the clock has gone back.
            named = (run for run in self._folder.parent.iterdir() if OF_A_RUN.fullmatch(run.name))
            others = [run for run in named if run != self._folder]
            others.sort(key=lambda run: run.stat().st_mtime, reverse=True)
            for old in others[MOST_RUNS - 1 :]:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def turn(self, number: int, attempt: int) -> Iterator[None]:
        """Train one round at a time; raise `FederationError` if a later one was asked for while this one waited.

        A coordinator that goes on asks again for what is still being trained: who waits finds the answer.
        """
        with self._changing() as known:
            known["newest"] = max(known.get("newest", [0, 0]), [number, attempt])
        with (self._folder / "turn").open("w") as turn:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if self._known()["newest"] > [number, attempt]:
                    raise FederationError("a later round was asked for before this one's turn came") from None
            yield

    def require_kind(self, *, masked: bool) -> None:
        """Refuse a question that is not masked in a run that was, or the reverse."""
        with self._changing() as known:
            if known.setdefault("masked", masked) is not masked:
                raise FederationError("a run is masked from its first question to its last, or not at all")

    def require_same(self, state: GlobalState) -> None:
        """Refuse a state that claims to be what this site computed, and is another, or what was thrown away since."""
        known = self._of(state.round)
        if state.attempt < known.get("attempt", 0):
            raise FederationError(
                f"the state of round {state.round} is of attempt {state.attempt}, and this site went on to attempt "
                f"{known['attempt']}: the sites did not adopt the one that came"
            )
        if known.get("attempt") == state.attempt and known["digest"] != state.digest:
            raise FederationError(
                f"the state of round {state.round} is not the one that this site computed: who sealed it runs another "
                "fedpp, or lies"
            )

    def loss_of(self, state: GlobalState) -> float | None:
        """Return the validation loss of this state, if it is what this site computed for its round."""
        known = self._of(state.round)
        loss = known.get("loss")
        return loss if known.get("digest") == state.digest and isinstance(loss, float) else None

    def judged(self, state: GlobalState) -> Mapping[str, Any] | None:
        """Return what `keep` was given with this state: the counts of its predictions, and the verdict's reason."""
        known = self._of(state.round)
        return known.get("judged") if known.get("digest") == state.digest else None

    def keep(self, state: GlobalState, loss: float | None, judged: Mapping[str, Any]) -> None:
        """Remember a state, in place of an earlier attempt at its round, or of two rounds before."""
        facts = {"round": state.round, "attempt": state.attempt, "digest": state.digest, "judged": judged}
        with self._changing() as known:
            known[_slot(state.round)] = facts if loss is None else {**facts, "loss": loss}

    def answer(self, question: str) -> RecordDict | None:
        """Return the answer that was kept, if it is to this question."""
        try:
            content = (self._folder / "answer").read_bytes()
        except OSError:  # most often there is none; one that cannot be read is none, either
            return None
        asked, whole, answer = content[:_SUM_BYTES], content[_SUM_BYTES : 2 * _SUM_BYTES], content[2 * _SUM_BYTES :]
        if asked != sha256(question.encode()).digest() or whole != sha256(answer).digest():
            return None
        return recorddict_from_proto(ProtoRecordDict.FromString(answer))

    def keep_answer(self, question: str, answer: RecordDict) -> None:
        """Keep an answer in place of the last; where there is no room for it, it may have to be computed again."""
        content = recorddict_to_proto(answer).SerializeToString()
        try:
            for left in self._folder.glob(".answer.*.tmp"):  # by a process that was killed in the midst of this
                left.unlink()
            replace(self._folder / "answer", sha256(question.encode()).digest() + sha256(content).digest() + content)
        except OSError as error:
            _log.warning("the update is sent, and not kept for a second question: %s", error.strerror)

    def _of(self, number: int) -> dict[str, Any]:
        known = self._known().get(_slot(number), {})
        return known if known.get("round") == number else {}

    def _known(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self._folder / "memory").read_text()))
        except FileNotFoundError:
            return {}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Yield what is known, and keep what it was changed to; raise `FederationError` where that cannot be kept."""
        try:
            with (self._folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._known()
                before = json.dumps(known)
                yield known
                if json.dumps(known) != before:
                    replace(self._folder / "memory", json.dumps(known).encode())
        except OSError as error:
            raise FederationError(
                f"this site cannot keep what it must remember of the run: {error.strerror}: see to its disk"
            ) from None


def _slot(number: int) -> str:
    return f"state-{number % 2}"
