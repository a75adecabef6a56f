"""Carries a run through: it submits the ServerApp, and another one in its place whenever one dies.

Flower 1.41 ends a run whose ServerApp or SuperLink dies, and does not take it up again. Here the next ServerApp goes on
from what the run's folder holds. Whether one lives is told by the lock that it holds, at once and for certain.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from coordinator.server.progress import Phase, Progress, ProgressFile
from coordinator.server.run_state import RunState
from fedpp.config.run_config import to_toml
from fedpp.errors import FederationError
from fedpp.processes import ProcessGroup

from .bundle_build import built
from .flower_command import NoSuperLinkError, flower
from .superlink import CONNECTION, State

POLL_SECONDS = 0.2
ASK_SECONDS = 5.0  # between two questions to SuperLink, which cost two seconds of a processor each
STOP_SECONDS = 20.0
MAX_DEATHS = 20  # of ServerApps, without a round in between
Settings = Mapping[str, str | int | float]


class Submission:
    """One run, from its first submission to its end."""

    def __init__(self, state: State, folder: RunState, settings: Settings) -> None:
        """Take the run's settings, and its folder, which may hold a run that was begun."""
        self._state, self._folder, self._settings = state, folder, settings
        self._told = folder.log.stat().st_size if folder.log.exists() else 0
        self._run = ""

    def carry_out(self) -> Progress:
        """Return how the run ended; SIGINT, SIGTERM and SIGHUP stop it.

        Raises `FederationError` if it cannot be submitted, or its ServerApps die without getting any further.
        """
        with ProcessGroup({}) as group:  # for its signals alone
            try:
                return self._carried(group)
            except FederationError as error:
                if self._folder.was_begun() and not self._folder.is_held():
                    self._tell("failed", str(error))
                raise

    def _carried(self, group: ProcessGroup) -> Progress:
        deaths, reached = 0, 0
        while True:
            if not self._folder.is_held():
                self._submit(group)
            ended = self._follow(group)
            if ended is not None:
                return ended
            progress = Progress.load(self._folder.progress)
            deaths = 1 if progress.round > reached else deaths + 1
            reached = max(reached, progress.round)
            if deaths > MAX_DEATHS:
                raise FederationError(
                    f"the ServerApp ended {deaths} times in round {progress.round}: see the messages of `up`, and "
                    "go on with run --resume"
                )
            self._note(f"the ServerApp ended in round {progress.round}: another one goes on from there")

    def _submit(self, group: ProcessGroup) -> None:
        """Start a ServerApp; while SuperLink is away, wait for it."""
        deadline, told = time.monotonic() + float(self._settings["wait-seconds"]), False
        while not group.stopped.is_set():
            try:
                with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
                    overrides = Path(folder) / "run.toml"
                    overrides.write_text(to_toml(self._settings))
                    previous, self._run = self._run, ""
                    command = ("run", str(self._folder.app), CONNECTION, "--run-config", str(overrides))
                    self._run = flower(self._state, *command)["run-id"]
            except FederationError as error:
                waiting = previous or (isinstance(error, NoSuperLinkError) and self._folder.was_begun())
                self._run = previous
                if not waiting or time.monotonic() > deadline:
                    raise
                if not told:
                    self._note(f"{error}; trying again")
                    told = True
                group.stopped.wait(1.0)
            else:
                self._note(f"bundle {sha256(built(self._folder.app)).hexdigest()}")
                self._note(f"run {self._run} started")
                self._abandon(previous)
                return

    def _follow(self, group: ProcessGroup) -> Progress | None:
        """Show what the run tells until it ended, and return how; return nothing if its ServerApp died."""
        seen, asked, stopping = False, time.monotonic(), 0.0
        while True:
            held = self._folder.is_held()
            self._show()
            progress = Progress.load(self._folder.progress)
            seen |= held or progress.run == self._run
            if progress.ended and not held:
                return progress
            if group.stopped.is_set() and not stopping:
                stopping = time.monotonic()
                self._folder.stop.touch()
            if stopping and (not held or time.monotonic() - stopping > STOP_SECONDS):
                self._abandon(self._run)
                return self._tell("stopped", "the run was stopped; go on with run --resume")
            if seen and not held:
                return None
            if not seen and time.monotonic() - asked > ASK_SECONDS:
                asked = time.monotonic()
                if self._is_over():
                    return None
            time.sleep(POLL_SECONDS)

    def _is_over(self) -> bool:
        """Tell whether SuperLink says that the run is over, though no ServerApp of it was seen."""
        try:
            described = flower(self._state, "list", CONNECTION, "--run-id", self._run)["runs"][0]
            reason = described["status-details"] or described["status"]
            over = str(described["status"]).startswith("finished")
        except NoSuperLinkError:
            return False
        except FederationError as error:  # the run of a database that was taken away is known to none
            reason, over = str(error), True
        if over:
            self._note(f"the ServerApp did not start: {reason}")
        return over

    def _abandon(self, run: str) -> None:
        """Tell SuperLink that nobody is behind a run any more, so that no site works for it."""
        if run:
            with suppress(FederationError):
                flower(self._state, "stop", run, CONNECTION)

    def _tell(self, phase: Phase, reason: str) -> Progress:
        """Tell who looks on how the run ended, in place of a ServerApp; return it."""
        ended = replace(Progress.load(self._folder.progress), phase=phase, reason=reason)
        ProgressFile(self._folder.progress, ended)
        return ended

    def _show(self) -> None:
        """Pass on what was added to the log."""
        with suppress(FileNotFoundError), self._folder.log.open("rb") as log:
            log.seek(self._told)
            whole = log.read().rpartition(b"\n")
            self._told += len(whole[0]) + len(whole[1])
            if whole[1]:
                print(whole[0].decode(errors="replace"), file=sys.stderr, flush=True)

    def _note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
