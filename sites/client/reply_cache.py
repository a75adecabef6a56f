"""What a site remembers of a run, on its disk: it outlives the ClientApp, the SuperNode and the coordinator.

Flower gives each message a process of its own, and a run that goes on after the coordinator died another number. So
what must last is kept here, by the run's nonce: of the states of the last two rounds that this site computed itself the
digests, validation losses, counts and verdicts; the last update as it was sent; and the states of the last two rounds
as they are sent. The same question gets the same answer, and costs no training; a state that is here need not
come again.

Under the domain mask an update is random bytes here as well, and a state is sealed by the vault; in clear they are what
the trainer can compute anyway.
"""

import fcntl
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fedpp.aggregation.global_state import GlobalState
from fedpp.errors import FederationError
from fedpp.files import make_folder, replace

from .packed_reply import pack, unpack

MAX_RUNS = 8  # whose folders are kept
OF_A_RUN = re.compile("[0-9a-f]{32}")  # the name of a run's folder
HELD = ("state-0", "state-1")  # files of the states of even and of odd rounds
_SUM_BYTES = 32

_log = logging.getLogger("fedpp.site")


class ReplyCache:
    """The memory of one run, in a folder of its own.

    Of two rounds, since a round that the sites do not adopt is repeated from the round before. Of a round it is the
    last attempt that this site computed: the sites may have adopted a later one, which it missed, and no earlier one.
    """

    def __init__(self, work: Path, nonce: str) -> None:
        """Open the memory of this run, which the coordinator named, or begin it; the oldest ones are forgotten."""
        self._folder = work / "runs" / sha256(nonce.encode()).hexdigest()[:32]
        if not self._folder.exists():
            make_folder(self._folder, 0o700)
            others = sorted(self._others(), key=lambda run: run.stat().st_mtime, reverse=True)
            for old in others[MAX_RUNS - 1 :]:
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
        packed = self._kept("answer", sha256(question.encode()).digest())
        return None if packed is None else unpack(packed)

    def keep_answer(self, question: str, answer: RecordDict) -> None:
        """Keep an answer in place of the last; where there is no room for it, it may have to be computed again."""
        self._keep("answer", sha256(question.encode()).digest(), *pack(answer))

    def held(self, digest: str) -> bytes | None:
        """Return the state of this digest as it is sent, if it is held here."""
        wanted = bytes.fromhex(digest)
        return next((sent for slot in HELD if (sent := self._kept(slot, wanted)) is not None), None)

    def hold(self, state: GlobalState, sent: bytes) -> None:
        """Hold a state, as it is sent, in place of an earlier attempt at its round, or of two rounds before.

        Other runs' are released: a site's disk has room for those of one, and what is gone is sent again.
        """
        self._release_others()
        self._keep(HELD[state.round % 2], bytes.fromhex(state.digest), sent)

    def release(self) -> None:
        """Hold no state any longer: the run is over."""
        self._release(self._folder)

    def _release_others(self) -> None:
        for run in self._others():
            self._release(run)

    def _others(self) -> list[Path]:
        """Return the folders of other runs: nothing but what was made here is ever removed."""
        named = (run for run in self._folder.parent.iterdir() if OF_A_RUN.fullmatch(run.name))
        return [run for run in named if run != self._folder]

    @staticmethod
    def _release(folder: Path) -> None:
        for slot in HELD:
            with suppress(OSError):
                (folder / slot).unlink(missing_ok=True)

    def _kept(self, name: str, key: bytes) -> bytes | None:
        """Return the content of a file, if it is whole and of this key."""
        try:
            with (self._folder / name).open("rb") as file:
                if file.read(_SUM_BYTES) != key:
                    return None
                whole, content = file.read(_SUM_BYTES), file.read()
        except OSError:  # most often there is none; one that cannot be read is none, either
            return None
        return content if sha256(content).digest() == whole else None

    def _keep(self, name: str, key: bytes, *content: bytes) -> None:
        """Write a file that may be lost, or damaged, by what ends a machine: that costs time and nothing else."""
        whole = sha256()
        for part in content:
            whole.update(part)
        try:
            for left in self._folder.glob(f".{name}.*.tmp"):  # by a process that was killed in the midst of this
                left.unlink()
            replace(self._folder / name, key, whole.digest(), *content, synced=False)
        except OSError as error:
            _log.warning("the run goes on, and its %s is not kept: %s", name, error.strerror)

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
