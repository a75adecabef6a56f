"""Memory of a running process, read by root or by its own user, and a search in it."""

import re
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_REGION = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (rw..) \S+ \S+ \S+ *(.*)$", re.MULTILINE)
_CHUNK = 2**22
_PAGE = resource.getpagesize()
_EXCLUSIVE = np.uint64(1 << 56)  # in /proc/PID/pagemap: no other process has the page
PAUSE_SECONDS = 0.3  # the searched process needs the processor, too


def found_in(content: bytes, patterns: Mapping[str, bytes]) -> set[str]:
    """Return the names of the patterns in a content."""
    return {name for name, pattern in patterns.items() if pattern in content}


class Search:
    """Search for many patterns at once, with the result of `found_in` in a small part of its time.

    At any offset, one of a pattern's first four runs of four bytes is an aligned word of the content. A table of half
    words leaves few candidates, the words fewer, and only content with a candidate is searched for each pattern.
    """

    def __init__(self, patterns: Mapping[str, bytes]) -> None:
        assert min(map(len, patterns.values())) >= 7
        self._patterns = patterns
        runs = b"".join(pattern[i : i + 4] for pattern in patterns.values() for i in range(4))
        self._words = np.unique(np.frombuffer(runs, np.uint32))
        self._halves = np.zeros(2**16, bool)
        self._halves[self._words & 0xFFFF] = True

    def found_in(self, content: bytes) -> set[str]:
        """Return the names of the patterns in a content."""
        words = np.frombuffer(content, np.uint32, len(content) // 4)
        likely = words[self._halves[words & 0xFFFF]]
        return found_in(content, self._patterns) if np.isin(likely, self._words).any() else set()


def found_in_process(process: int, patterns: Mapping[str, bytes]) -> set[str]:
    """Return the names of the patterns in the writable memory of a process: heap, stacks, and mappings.

    Pages that a forked process still shares with its parent are as they were before the fork, and left out: they are
    most of its memory.
    """
    longest, search = max(map(len, patterns.values())), Search(patterns)
    found: set[str] = set()
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for start, end in _own_memory(process):
            position = start
            while position < end:
                try:
                    memory.seek(position)
                    content = memory.read(min(_CHUNK, end - position))
                except (OSError, ValueError):  # a device's, or unmapped meanwhile
                    break
                if not content:
                    break
                found |= search.found_in(content)
                position += len(content) if position + len(content) == end else max(1, len(content) - longest)
    return found


def _own_memory(process: int) -> Iterator[tuple[int, int]]:
    """Yield first and last address of each run of writable pages that no other process has."""
    with Path(f"/proc/{process}/pagemap").open("rb", buffering=0) as pages:
        for first, last, *_ in _REGION.findall(Path(f"/proc/{process}/maps").read_text()):
            start, end = int(first, 16), int(last, 16)
            pages.seek(start // _PAGE * 8)
            exclusive = np.frombuffer(pages.read((end - start) // _PAGE * 8), np.uint64) & _EXCLUSIVE > 0
            borders = np.flatnonzero(np.diff(exclusive, prepend=False, append=False))
            yield from ((start + _PAGE * int(one), start + _PAGE * int(other)) for one, other in borders.reshape(-1, 2))


class Watch:
    """Patterns found in each running process."""

    def __init__(self) -> None:
        self.found: dict[int, set[str]] = {}
        self.looks = 0


@contextmanager
def watched(processes: Callable[[], Iterator[int]], patterns: Mapping[str, bytes]) -> Iterator[Watch]:
    """Search all these processes repeatedly until the block ends."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        while not ended.wait(PAUSE_SECONDS):
            for process in processes():
                try:
                    found = found_in_process(process, patterns)
                except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                    continue
                watch.found[process] = watch.found.get(process, set()) | found
                watch.looks += 1

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join(120)
    assert not thread.is_alive()
