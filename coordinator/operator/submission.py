"""Submission of a run: starts its ServerApp, and a new one whenever it crashes, until the run is over.

Flower 1.42 ends a run whose ServerApp or SuperLink crashes, and does not resume it. Here a new ServerApp resumes it
from the run's folder. The lock there, which a ServerApp holds, shows at once and for certain whether one runs.
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
STATUS_SECONDS = 5.0  # between two queries of SuperLink, each of which takes two seconds of a processor
STOP_SECONDS = 20.0
MAX_CRASHES = 20  # of ServerApps, without a completed round in between
Settings = Mapping[str, str | int | float]


class Submission:
    """One run, from its first ServerApp to its end."""

    def __init__(self, state: State, folder: RunState, settings: Settings) -> None:
        """Take the run's settings, and its folder, which may hold a started run."""
        self._state, self._folder, self._settings = state, folder, settings
        self._shown = folder.log.stat().st_size if folder.log.exists() else 0
        self._run = ""

    def carry_out(self) -> Progress:
        """Run to the end and return the last progress; SIGINT, SIGTERM and SIGHUP stop the run.

        Raises `FederationError` if it cannot be submitted, or its ServerApps keep crashing in one round.
        """
        with ProcessGroup({}) as group:  # for its signals alone
            try:
                return self._carried(group)
            except FederationError as error:
                if self._folder.was_started() and not self._folder.is_held():
                    self._end("failed", str(error))
                raise

    def _carried(self, group: ProcessGroup) -> Progress:
        crashes, reached = 0, 0
        while True:
            if not self._folder.is_held():
                self._submit(group)
            ended = self._follow(group)
            if ended is not None:
                return ended
            progress = Progress.load(self._folder.progress)
            crashes = 1 if progress.round > reached else crashes + 1
            reached = max(reached, progress.round)
            if crashes > MAX_CRASHES:
                raise FederationError(
                    f"the ServerApp crashed {crashes} times in round {progress.round}: see {self._state.log}, and "
                    "resume with run --resume"
                )
            self._note(f"the ServerApp crashed in round {progress.round}: a new one resumes the run")

    def _submit(self, group: ProcessGroup) -> None:
        """Start a ServerApp; wait for SuperLink while it does not answer."""
        deadline, noted = time.monotonic() + float(self._settings["wait-seconds"]), False
        while not group.stopped.is_set():
            previous, self._run = self._run, ""
            try:
                with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
                    overrides = Path(folder) / "run.toml"
                    overrides.write_text(to_toml({**self._settings, "coordinator": self._state.coordinator()}))
                    command = ("run", str(self._folder.app), CONNECTION, "--run-config", str(overrides))
                    self._run = flower(self._state, *command)["run-id"]
            except FederationError as error:
                waiting = previous or (isinstance(error, NoSuperLinkError) and self._folder.was_started())
                self._run = previous
                if not waiting or time.monotonic() > deadline:
                    raise
                if not noted:
                    self._note(f"{error}; retrying")
                    noted = True
                group.stopped.wait(1.0)
            else:
                self._note(f"bundle {sha256(built(self._folder.app)).hexdigest()}")
                self._note(f"run {self._run} started")
                self._abandon(previous)
                return

    def _follow(self, group: ProcessGroup) -> Progress | None:
        """Show the run's log until the run ends and return its last progress; return None if its ServerApp crashed."""
        seen, queried, stopping = False, time.monotonic(), 0.0
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
                return self._end("stopped", "the run was stopped; resume it with run --resume")
            if seen and not held:
                return None
            if not seen and time.monotonic() - queried > STATUS_SECONDS:
                queried = time.monotonic()
                if self._is_over():
                    return None
            time.sleep(POLL_SECONDS)

    def _is_over(self) -> bool:
        """Tell whether SuperLink reports that the run is over, before a ServerApp of it was seen."""
        try:
            described = flower(self._state, "list", CONNECTION, "--run-id", self._run)["runs"][0]
            reason = described["status-details"] or described["status"]
            over = str(described["status"]).startswith("finished")
        except NoSuperLinkError:
            return False
        except FederationError as error:  # SuperLink does not know the run, as after its database was removed
            reason, over = str(error), True
        if over:
            self._note(f"the ServerApp did not start: {reason}")
        return over

    def _abandon(self, run: str) -> None:
        """Stop a run at SuperLink, so that no site works for it any more."""
        if run:
            with suppress(FederationError):
                flower(self._state, "stop", run, CONNECTION)

    def _end(self, phase: Phase, reason: str) -> Progress:
        """Write the end of the run to the progress file, in place of a ServerApp; return it."""
        ended = replace(Progress.load(self._folder.progress), phase=phase, reason=reason)
        ProgressFile(self._folder.progress, ended)
        return ended

    def _show(self) -> None:
        """Show the lines that were added to the run's log."""
        with suppress(FileNotFoundError), self._folder.log.open("rb") as log:
            log.seek(self._shown)
            whole = log.read().rpartition(b"\n")
            self._shown += len(whole[0]) + len(whole[1])
            if whole[1]:
                print(whole[0].decode(errors="replace"), file=sys.stderr, flush=True)

    def _note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
