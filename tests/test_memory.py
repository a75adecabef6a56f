"""Search of the tests for secrets in a process's memory: it finds every pattern that is there."""

import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from memory import Search, found_in, found_in_process

LENGTH, CHUNK = 13, 4096
SIZE = 64 * CHUNK
SLEEPER = """
import mmap, sys
kept = mmap.mmap(-1, int(sys.argv[1]))
kept[:] = sys.stdin.buffer.read(len(kept))
print(flush=True)
sys.stdin.read()
"""


def test_the_search_equals_a_plain_one():
    """The fast search equals the plain one: at every offset, for any length, and for patterns cut off at either end."""
    generator = random.Random(0)
    patterns = {str(size): generator.randbytes(size) for size in (7, 8, 9, 16, 100)}
    search = Search(patterns)
    for pattern in patterns.values():
        for offset in range(12):
            for content in (
                bytes(offset) + pattern + bytes(generator.randrange(8)),
                generator.randbytes(offset) + pattern + generator.choice(list(patterns.values())),
                bytes(offset) + pattern[:-1],
                bytes(offset) + pattern[1:],
            ):
                assert search.found_in(content) == found_in(content, patterns)
    assert search.found_in(b"") == search.found_in(b"abc") == set()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that keeps its input in memory."""
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(SIZE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process


def test_patterns_across_the_borders_of_reads_are_found(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
):
    """A pattern is found at the start, across a border at each offset, and at the end of the memory."""
    monkeypatch.setattr("memory._CHUNK", CHUNK)
    generator = random.Random(1)
    patterns = {str(number): generator.randbytes(LENGTH) for number in range(32)}
    content = bytearray(SIZE)
    content[:LENGTH], content[-LENGTH:] = patterns["0"], patterns["1"]
    for number in range(1, LENGTH):  # the last of them is nowhere
        reads = number * (CHUNK - LENGTH) + CHUNK  # where a read ends, if reads overlap
        for name, border in ((number + 1, reads), (number + LENGTH, CHUNK * (20 + number))):
            start = border - number
            content[start : start + LENGTH] = patterns[str(name)]
    assert sleeper.stdin
    assert sleeper.stdout
    sleeper.stdin.write(content)
    sleeper.stdin.flush()
    sleeper.stdout.readline()
    assert found_in_process(sleeper.pid, patterns) == {str(number) for number in range(2 * LENGTH)}
