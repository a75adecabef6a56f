"""Where a run is, for people and programs that look on: a small JSON file, replaced at each step."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from fedpp import files

Phase = Literal["waiting", "training", "judging", "testing", "completed", "failed", "stopped"]

ENDED: tuple[Phase, ...] = ("completed", "failed", "stopped")


@dataclass(frozen=True)
class Progress:
    """One look at a run."""

    run: str = ""  # Flower's number
    phase: Phase = "waiting"
    round: int = 0  # that is made, from 1
    rounds: int = 0
    attempt: int = 1
    sites: Mapping[str, str] = field(default_factory=dict)  # site -> asked, answered, or why it did not
    deadline: float = 0.0  # of what is waited for, in seconds since 1970
    updated: float = 0.0  # likewise
    round_seconds: float = 0.0  # of a round so far, on average
    reason: str = ""  # why it failed

    @property
    def ended(self) -> bool:
        """Tell whether there is nothing more to come."""
        return self.phase in ENDED

    @property
    def late(self) -> tuple[str, ...]:
        """Return who has not answered yet."""
        return tuple(name for name, said in self.sites.items() if said == "asked")

    @property
    def eta(self) -> float:
        """Return how many seconds the rest takes, at the pace of the rounds so far; 0 if that is not known."""
        left = 0 if self.ended else self.rounds - self.round + 1
        return max(0, left) * self.round_seconds

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        return {**asdict(self), "late": list(self.late), "eta": self.eta}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; what cannot be read is a run that tells nothing yet."""
        try:
            values = json.loads(path.read_text())
            return cls(**{name: value for name, value in values.items() if name not in {"late", "eta"}})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()


class ProgressFile:
    """Keeps the file up to date; a disk that is full costs the picture, and not the run."""

    def __init__(self, path: Path, begun: Progress, now: Callable[[], float] = time.time) -> None:
        """Begin, and write it."""
        self._path, self._now, self._last = path, now, begun
        self.tell()

    def tell(self, **changes: Any) -> None:
        """Change what is told."""
        self._last = replace(self._last, **changes, updated=self._now())
        content = json.dumps(self._last.to_mapping()).encode()
        with suppress(OSError):
            try:
                files.replace(self._path, content, mode=0o644)
            except OSError:
                if self._last.ended:  # who runs it must hear of that: the file's own place on the disk is there
                    self._overwrite(content)

    def _overwrite(self, content: bytes) -> None:
        with self._path.open("r+b") as file:
            file.write(content)
            file.truncate()

    def site(self, name: str, said: str) -> None:
        """Tell of one site."""
        self.tell(sites={**self._last.sites, name: said})
