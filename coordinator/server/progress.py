"""Progress of a run, for people and programs that watch it: a small JSON file, replaced at each step."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from fedpp import files

Phase = Literal[
    "waiting",
    "starting",
    "training",
    "releasing",
    "stepping",
    "evaluating",
    "testing",
    "paused",
    "completed",
    "failed",
    "stopped",
]
SiteStatus = Literal["pending", "replied", "refused", "excluded", "offline", "straggler", "quarantined"]

ENDED: tuple[Phase, ...] = ("completed", "failed", "stopped")


@dataclass(frozen=True)
class Progress:
    """State of a run at one moment."""

    run: str = ""  # Flower's number
    phase: Phase = "waiting"
    round: int = 0  # in progress, from 1
    rounds: int = 0
    attempt: int = 1
    sites: Mapping[str, SiteStatus] = field(default_factory=dict)
    deadline: float = 0.0  # for the pending replies, in seconds since 1970
    updated: float = 0.0  # likewise
    round_seconds: float = 0.0  # mean duration of a round so far
    reason: str = ""  # why the run is paused, failed or stopped

    @property
    def ended(self) -> bool:
        """Tell whether the run is over."""
        return self.phase in ENDED

    @property
    def pending(self) -> tuple[str, ...]:
        """Return the sites whose reply is pending."""
        return tuple(name for name, status in self.sites.items() if status == "pending")

    @property
    def eta(self) -> float:
        """Return the expected remaining seconds, at the pace of the rounds so far; 0 if unknown, as in a pause."""
        left = 0 if self.ended or self.phase == "paused" else self.rounds - self.round + 1
        return max(0, left) * self.round_seconds

    @property
    def awaited(self) -> tuple[str, ...]:
        """Return the sites for which the run waits: those whose reply is pending, and in a pause all that lack."""
        if self.phase != "paused":
            return self.pending
        return tuple(name for name, status in self.sites.items() if status != "replied")

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        return {**asdict(self), "pending": list(self.pending), "eta": self.eta}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; a missing or damaged one is a run that has reported nothing yet."""
        try:
            values = json.loads(path.read_text())
            return cls(**{name: value for name, value in values.items() if name not in {"pending", "eta"}})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()


class ProgressFile:
    """Writer of the progress file; a full disk costs the file, and not the run."""

    def __init__(self, path: Path, begun: Progress, now: Callable[[], float] = time.time) -> None:
        """Write the first progress."""
        self._path, self._now, self._last = path, now, begun
        self.update()

    def update(self, **changes: Any) -> None:
        """Write the progress with these fields changed."""
        self._last = replace(self._last, **changes, updated=self._now())
        content = json.dumps(self._last.to_mapping()).encode()
        with suppress(OSError):
            try:
                files.replace(self._path, content, mode=0o644, synced=False)  # a loss of power may damage it
            except OSError:
                if self._last.ended:  # `run` must see the end: the file's own space on the disk is there
                    self._overwrite(content)

    def _overwrite(self, content: bytes) -> None:
        with self._path.open("r+b") as file:
            file.write(content)
            file.truncate()

    def site(self, name: str, status: SiteStatus) -> None:
        """Write the status of one site."""
        self.update(sites={**self._last.sites, name: status})
