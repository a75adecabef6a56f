"""Reply cache of a site: what it keeps of a run on disk, so that a repeated request gets the same reply untrained.

Flower starts a process for each message, and a resumed run has another number, so files are by the run's nonce:

- `rounds`: digest, validation loss, counts and acceptance of the states of two rounds that this site computed itself;
- `reply`: the last reply that costs a training, with the SHA-256 of its request;
- `state-0`, `state-1`: the states of two rounds as they are sent, so that the coordinator need not send them again.

It serves runs in clear, whose updates and states are what the trainer can compute anyway; of a masked run the vault
keeps what it replied.
"""

import fcntl
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fedpp import container
from fedpp.aggregation.global_state import GlobalState
from fedpp.container import Facts
from fedpp.errors import FederationError
from fedpp.files import make_folder, replace

from .packed_reply import pack, unpack

FORMAT = "fedpp-reply-1"
MAX_RUNS = 8  # whose folders are kept
OF_A_RUN = re.compile("[0-9a-f]{32}")  # the name of a run's folder
HELD = ("state-0", "state-1")  # files of the states of even and of odd rounds

_log = logging.getLogger("fedpp.site")


class ReplyCache:
    """Cache of one run, in a folder of its own.

    It covers two rounds, since a rejected round is retried from the round before. Of each round it keeps the last
    attempt that this site computed: the accepted one is that or a later one, which this site missed.
    """

    def __init__(self, work: Path, nonce: str) -> None:
        """Open or create the cache of this run; of other runs the oldest are deleted beyond `MAX_RUNS`."""
        self._folder = work / "runs" / sha256(nonce.encode()).hexdigest()[:32]
        if not self._folder.exists():
            make_folder(self._folder, 0o700)
            others = sorted(self._others(), key=lambda run: run.stat().st_mtime, reverse=True)
            for old in others[MAX_RUNS - 1 :]:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def turn(self, number: int, attempt: int) -> Iterator[None]:
        """Train one round at a time; raise `FederationError` if a later one was requested while this one waited.

        A resumed coordinator requests again what is still being trained: the second request then finds the reply.
        """
        with self._changing() as known:
            known["newest"] = max(known.get("newest", [0, 0]), [number, attempt])
        with (self._folder / "turn").open("w") as turn:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if self._known()["newest"] > [number, attempt]:
                    raise FederationError("a later round was requested before this one could start") from None
            yield

    def require_same(self, state: GlobalState) -> None:
        """Raise `FederationError` for a state that differs from what this site computed, or that was rejected since."""
        known = self._of(state.round)
        if state.attempt < known.get("attempt", 0):
            raise FederationError(
                f"the state of round {state.round} is of attempt {state.attempt}, and this site has computed attempt "
                f"{known['attempt']}: the sites rejected the state in the message"
            )
        if known.get("attempt") == state.attempt and known["digest"] != state.digest:
            raise FederationError(
                f"the state of round {state.round} is not the one that this site computed: the site that sent it "
                "runs another fedpp, or cheats"
            )

    def loss_of(self, state: GlobalState) -> float | None:
        """Return the validation loss of this state, if this site computed it for its round."""
        known = self._of(state.round)
        loss = known.get("loss")
        return loss if known.get("digest") == state.digest and isinstance(loss, float) else None

    def evaluation(self, state: GlobalState) -> Mapping[str, Any] | None:
        """Return the evaluation that was kept with this state: its counts, and the reason for a rejection."""
        known = self._of(state.round)
        return known.get("evaluation") if known.get("digest") == state.digest else None

    def keep(self, state: GlobalState, loss: float | None, evaluation: Mapping[str, Any]) -> None:
        """Keep a state's evaluation, in place of an earlier attempt at its round, or of two rounds before."""
        facts = {"round": state.round, "attempt": state.attempt, "digest": state.digest, "evaluation": evaluation}
        with self._changing() as known:
            known[_slot(state.round)] = facts if loss is None else {**facts, "loss": loss}

    def reply(self, request: str, compute: Callable[[], RecordDict]) -> RecordDict:
        """Return the kept reply to this request, or compute and keep it; call it within `turn`."""
        reply = self.kept_reply(request)
        if reply is None:
            reply = compute()
            self.keep_reply(request, reply)
        return reply

    def kept_reply(self, request: str) -> RecordDict | None:
        """Return the reply that was kept, if it is to this request."""
        kept = self._kept("reply", {"request": sha256(request.encode()).hexdigest()})
        return None if kept is None else unpack(*kept)

    def keep_reply(self, request: str, reply: RecordDict) -> None:
        """Keep a reply in place of the last; without room on the disk it is computed again when it is needed."""
        facts, content = pack(reply)
        self._keep("reply", {**facts, "request": sha256(request.encode()).hexdigest()}, *content)

    def held(self, digest: str) -> bytes | None:
        """Return the state of this digest as it is sent, if it is held."""
        return next((kept[1] for slot in HELD if (kept := self._kept(slot, {"state": digest})) is not None), None)

    def hold(self, state: GlobalState, sent: bytes) -> None:
        """Hold a state as it is sent, in place of an earlier attempt at its round, or of two rounds before.

        Other runs' states are released, to need disk space for one run: a missing state is sent again.
        """
        self._release_others()
        self._keep(HELD[state.round % 2], {"state": state.digest}, sent)

    def release(self) -> None:
        """Delete the held states at the end of the run."""
        self._release(self._folder)

    def _release_others(self) -> None:
        for run in self._others():
            self._release(run)

    def _others(self) -> list[Path]:
        """Return the folders of other runs; nothing else in the work folder is ever removed."""
        named = (run for run in self._folder.parent.iterdir() if OF_A_RUN.fullmatch(run.name))
        return [run for run in named if run != self._folder]

    @staticmethod
    def _release(folder: Path) -> None:
        for slot in HELD:
            with suppress(OSError):
                (folder / slot).unlink(missing_ok=True)

    def _kept(self, name: str, wanted: Facts) -> tuple[Facts, bytes] | None:
        """Return the facts and content of a file, if it is complete and has the wanted facts."""
        try:
            with (self._folder / name).open("rb") as file:
                return container.read(FORMAT, file, wanted)
        except (OSError, ValueError, LookupError):  # missing, not readable, damaged, or of another request or state
            return None

    def _keep(self, name: str, facts: Facts, *content: bytes) -> None:
        """Write a file without syncing it: a loss of power may damage it, which costs time only."""
        try:
            for leftover in self._folder.glob(f".{name}.*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink()
            replace(self._folder / name, *container.parts(FORMAT, facts, *content), synced=False)
        except OSError as error:
            _log.warning("the run continues, but its %s is not kept: %s", name, error.strerror)

    def _of(self, number: int) -> dict[str, Any]:
        known = self._known().get(_slot(number), {})
        return known if known.get("round") == number else {}

    def _known(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self._folder / "rounds").read_text()))
        except FileNotFoundError:
            return {}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Yield the content of `rounds`, and write its changes; raise `FederationError` where that fails."""
        try:
            with (self._folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._known()
                before = json.dumps(known)
                yield known
                if json.dumps(known) != before:
                    replace(self._folder / "rounds", json.dumps(known).encode())
        except OSError as error:
            raise FederationError(
                f"this site cannot write its record of the run: {error.strerror}: check its disk"
            ) from None


def _slot(number: int) -> str:
    return f"state-{number % 2}"
