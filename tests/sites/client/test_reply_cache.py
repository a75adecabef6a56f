"""The reply cache: complete replies or none, of its own run only, and one training at a time."""

import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import ROOT
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from site_nodes import NONCE, initial_state, run_spec_of

from fedpp.aggregation.global_state import GlobalState
from fedpp.errors import FederationError
from fedpp.keys.key_domain import KeyDomain
from sites.client.reply_cache import MAX_RUNS, ReplyCache

SECONDS = 20.0
KILLED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from sites.client.reply_cache import ReplyCache

cache = ReplyCache(Path(sys.argv[1]), sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which ends the process when a file grows beyond the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache.keep_reply("a request", RecordDict({"arrays": ArrayRecord({"values": Array(np.ones(10**4))})}))
"""


def reply_of(size: int = 3) -> RecordDict:
    arrays = ArrayRecord({"values": Array(np.arange(size, dtype="<u8"))})
    return RecordDict({"metrics": MetricRecord({"num-examples": size, "loss": 0.1}), "arrays": arrays})


def packed(reply: RecordDict | None) -> bytes:
    assert reply is not None
    return recorddict_to_proto(reply).SerializeToString()


def folder_of(work: Path) -> Path:
    """Return the folder of the one run."""
    (folder,) = (work / "runs").iterdir()
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond this size, as a disk without room for more would: that holds for root, too."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting(file: Path) -> int:
    """Return how many wait for the lock of a file, as the kernel lists them."""
    inode = f":{file.stat().st_ino}"
    return sum("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.fixture
def state(domain: KeyDomain) -> GlobalState:
    return replace(initial_state(domain, run_spec_of(domain)), round=1, attempt=1)


def use(cache: ReplyCache) -> None:
    """Take a turn of the first round, which the cache keeps."""
    with cache.turn(1, 1):
        pass


def test_a_kept_reply_is_for_its_request_only(tmp_path: Path) -> None:
    """To the byte, from any process; another request, another run, and the request before it get none."""
    ReplyCache(tmp_path, NONCE).keep_reply("the first", reply_of(3))
    again = ReplyCache(tmp_path, NONCE)
    assert packed(again.kept_reply("the first")) == packed(reply_of(3))
    for other in ("the second", "the first ", ""):
        assert again.kept_reply(other) is None
    assert ReplyCache(tmp_path, NONCE[:-1]).kept_reply("the first") is None
    again.keep_reply("the second", reply_of(5))
    assert packed(again.kept_reply("the second")) == packed(reply_of(5))
    assert again.kept_reply("the first") is None


def test_a_damaged_reply_is_not_used(tmp_path: Path) -> None:
    """With any byte changed, cut anywhere, or with more behind it; the next one is kept as usual."""
    cache = ReplyCache(tmp_path, NONCE)
    cache.keep_reply("a request", reply_of())
    kept = folder_of(tmp_path) / "reply"
    whole = kept.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    for damaged in (*flipped, *(whole[:length] for length in range(len(whole))), whole + b"\0"):
        kept.write_bytes(damaged)
        assert cache.kept_reply("a request") is None
    cache.keep_reply("a request", reply_of())
    assert packed(cache.kept_reply("a request")) == packed(reply_of())


def test_a_reply_that_cannot_be_read_or_replaced_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in its place is no reply, and keeping one is a line in the site's log."""
    cache = ReplyCache(tmp_path, NONCE)
    (folder_of(tmp_path) / "reply").mkdir()
    assert cache.kept_reply("a request") is None
    cache.keep_reply("a request", reply_of())
    assert caplog.messages == ["the run continues, but its reply is not kept: Is a directory"]
    use(cache)
    assert files(folder_of(tmp_path)) == {"lock", "reply", "rounds", "turn"}


def test_without_room_for_a_reply_the_last_one_stays(
    tmp_path: Path, state: GlobalState, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is half-written, a line in the site's log gives the reason, and the rest is kept as usual."""
    cache = ReplyCache(tmp_path, NONCE)
    cache.keep_reply("the first", reply_of())
    with files_of_at_most(4096):
        cache.keep_reply("the second", reply_of(10**4))
        cache.keep(state, 0.5, {"reason": ""})
    assert caplog.messages == ["the run continues, but its reply is not kept: File too large"]
    assert files(folder_of(tmp_path)) == {"lock", "reply", "rounds"}
    assert packed(cache.kept_reply("the first")) == packed(reply_of())
    assert cache.kept_reply("the second") is None
    assert cache.loss_of(state) == 0.5


def test_a_site_that_cannot_write_its_record_refuses(tmp_path: Path, state: GlobalState) -> None:
    """What the update check depends on is kept, or the request is refused and the record unchanged."""
    cache = ReplyCache(tmp_path, NONCE)
    use(cache)
    text = "this site cannot write its record of the run: File too large: check its disk"
    with files_of_at_most(8):
        with pytest.raises(FederationError, match=text):
            cache.keep(state, 0.5, {"reason": ""})
        with pytest.raises(FederationError, match=text), cache.turn(2, 1):
            pass
        use(cache)  # which it knows
    assert files(folder_of(tmp_path)) == {"lock", "rounds", "turn"}
    assert cache.evaluation(state) is None


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    """The reply before is complete, and the next one removes what was written."""
    cache = ReplyCache(tmp_path, NONCE)
    cache.keep_reply("the first", reply_of())
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), NONCE], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert len(files(folder_of(tmp_path))) == 2
    assert packed(cache.kept_reply("the first")) == packed(reply_of())
    cache.keep_reply("the second", reply_of())
    assert files(folder_of(tmp_path)) == {"reply"}


def test_a_reply_is_packed_with_all_its_records(tmp_path: Path) -> None:
    """Each record, array, dtype, shape and text comes back, in any number; an array of no bytes, too."""
    arrays = ArrayRecord({"values": Array(np.arange(6, dtype="<u4").reshape(2, 3)), "none": Array(np.zeros(0))})
    reply = RecordDict(
        {
            "metrics": MetricRecord({"num-examples": 7, "losses": [0.1, 0.2]}),
            "arrays": arrays,
            "origin": ConfigRecord({"domain": "e\u00e9", "digest": b"\0\xff", "round": 3, "masked": True}),
            "more": ArrayRecord({"one": Array(np.float64([0.5]))}),
            "empty": ArrayRecord(),
        }
    )
    cache = ReplyCache(tmp_path, NONCE)
    cache.keep_reply("a request", reply)
    kept = cache.kept_reply("a request")
    assert kept is not None
    assert [(name, dict(record)) for name, record in kept.items()] == [(n, dict(of)) for n, of in reply.items()]


def test_states_of_two_rounds_are_held(tmp_path: Path, state: GlobalState) -> None:
    """To the byte, by digest, from any process; a later attempt replaces an earlier one of its round only."""
    states = {at: replace(state, round=at[0], attempt=at[1]) for at in ((1, 1), (2, 1), (2, 2), (3, 1))}
    cache = ReplyCache(tmp_path, NONCE)
    assert cache.held(state.digest) is None
    held: list[set[tuple[int, int]]] = []
    for at, of in states.items():
        ReplyCache(tmp_path, NONCE).hold(of, f"sealed {at}".encode())
        there = {at: cache.held(of.digest) for at, of in states.items()}
        assert all(sent in {None, f"sealed {at}".encode()} for at, sent in there.items())
        held.append({at for at, sent in there.items() if sent})
    assert held == [{(1, 1)}, {(1, 1), (2, 1)}, {(1, 1), (2, 2)}, {(2, 2), (3, 1)}]
    other = ReplyCache(tmp_path, NONCE[:-1])
    assert other.held(states[3, 1].digest) is None
    assert cache.held(states[3, 1].digest) is not None
    cache.release()
    assert [cache.held(of.digest) for of in states.values()] == [None] * 4


def test_a_damaged_state_is_not_held(tmp_path: Path, state: GlobalState) -> None:
    """With any byte changed, or cut anywhere."""
    cache = ReplyCache(tmp_path, NONCE)
    cache.hold(state, b"sealed")
    kept = folder_of(tmp_path) / "state-1"
    whole = kept.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    for damaged in (*flipped, *(whole[:length] for length in range(len(whole))), whole + b"\0"):
        kept.write_bytes(damaged)
        assert cache.held(state.digest) is None


def test_states_of_one_run_are_held(tmp_path: Path, state: GlobalState) -> None:
    """Of runs in turn, the states of the last are held, and of the others what cannot be sent again."""
    first, second = ReplyCache(tmp_path, "first"), ReplyCache(tmp_path, "second")
    (tmp_path / "runs" / ("ab" * 16)).touch()  # a file, where a run's folder could be
    first.hold(state, b"sealed")
    first.keep_reply("a request", reply_of())
    for one, other in ((second, first), (first, second), (second, first)):
        one.hold(state, b"sealed")
        assert (one.held(state.digest), other.held(state.digest)) == (b"sealed", None)
    assert packed(first.kept_reply("a request")) == packed(reply_of())


def test_a_waiting_request_finds_the_reply(tmp_path: Path) -> None:
    """One trains at a time; an earlier request may still wait for the one after it."""
    found: list[RecordDict | None] = []

    def request(number: int) -> None:
        cache = ReplyCache(tmp_path, NONCE)
        with cache.turn(number, 1):
            found.append(cache.kept_reply("a request"))

    cache = ReplyCache(tmp_path, NONCE)
    with cache.turn(1, 1):
        same, later = Thread(target=request, args=(1,)), Thread(target=request, args=(2,))
        same.start()
        until(lambda: waiting(folder_of(tmp_path) / "turn") == 1)
        assert found == []
        cache.keep_reply("a request", reply_of())
    same.join(SECONDS)
    assert list(map(packed, found)) == [packed(reply_of())]
    with cache.turn(1, 1):
        later.start()
        until(lambda: waiting(folder_of(tmp_path) / "turn") == 1)
        assert len(found) == 1
    later.join(SECONDS)
    assert len(found) == 2


@pytest.mark.parametrize("newer", [(1, 2), (2, 1)])
@pytest.mark.parametrize("overtaken", [False, True])
def test_a_waiting_request_is_refused_after_one_of_a_later_round(
    tmp_path: Path, newer: tuple[int, int], overtaken: bool
) -> None:
    """Its training would delay the later one, and nobody waits for it; the later one has its turn."""
    ended: dict[tuple[int, int], str] = {}

    def request(*at: int) -> None:
        try:
            with ReplyCache(tmp_path, NONCE).turn(*at):
                ended[at] = "trained"
        except FederationError as error:
            ended[at] = str(error)

    order = (newer, (1, 1)) if overtaken else ((1, 1), newer)
    requests = [Thread(target=request, args=at) for at in order]
    with ReplyCache(tmp_path, NONCE).turn(1, 1):
        for number, thread in enumerate(requests, 1):
            thread.start()
            until(lambda number=number: waiting(folder_of(tmp_path) / "turn") == number)
    for thread in requests:
        thread.join(SECONDS)
    assert ended == {(1, 1): "a later round was requested before this one could start", newer: "trained"}


def test_a_turn_ends_with_its_process_and_its_error(tmp_path: Path) -> None:
    """A failed training is followed by the next one at once."""
    cache = ReplyCache(tmp_path, NONCE)
    with pytest.raises(ZeroDivisionError), cache.turn(1, 1):
        raise ZeroDivisionError
    with cache.turn(1, 1), (folder_of(tmp_path) / "turn").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    """By their last use: a run that eight others followed is deleted, one that was used again is not."""
    names = [f"{number:064x}" for number in range(MAX_RUNS + 1)]
    for age, name in enumerate(names[:-1]):
        ReplyCache(tmp_path, name).keep_reply(name, reply_of())
        newest = max((tmp_path / "runs").iterdir(), key=lambda run: run.stat().st_mtime_ns)
        os.utime(newest, (age, age))
    use(ReplyCache(tmp_path, names[0]))  # again
    ReplyCache(tmp_path, names[-1]).keep_reply(names[-1], reply_of())
    assert len(files(tmp_path / "runs")) == MAX_RUNS
    for name in (names[0], *names[2:]):
        assert packed(ReplyCache(tmp_path, name).kept_reply(name)) == packed(reply_of())
    assert ReplyCache(tmp_path, names[1]).kept_reply(names[1]) is None


def test_a_new_run_is_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    """Runs from a time when the clock was ahead look newer than it, and are deleted first all the same."""
    for number in range(MAX_RUNS):
        use(ReplyCache(tmp_path, str(number)))
    for run in (tmp_path / "runs").iterdir():
        os.utime(run, (2**33, 2**33))
    cache = ReplyCache(tmp_path, "now")
    use(cache)
    cache.keep_reply("a request", reply_of())
    assert packed(ReplyCache(tmp_path, "now").kept_reply("a request")) == packed(reply_of())
    assert len(files(tmp_path / "runs")) == MAX_RUNS


def test_only_folders_of_runs_are_deleted(tmp_path: Path) -> None:
    """Anything else beside them was put there by somebody: it stays, however old."""
    for name in ("backup", "0" * 31, "g" * 32, "A" * 32):
        (tmp_path / "runs" / name).mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (0, 0))
    for number in range(MAX_RUNS + 3):
        use(ReplyCache(tmp_path, str(number)))
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert left > {"backup", "0" * 31, "g" * 32, "A" * 32}
    assert len(left) == MAX_RUNS + 4


@pytest.mark.parametrize("nonce", ["../../x", "{}/x", "..", ".", "", "a/b", "a\0b", "x" * 5000, "ж"])
def test_a_nonce_names_no_path(tmp_path: Path, nonce: str) -> None:
    """Whatever the run's nonce is, the site writes in one private folder of its own."""
    work = tmp_path / "a" / "b" / "work"
    cache = ReplyCache(work, nonce.format(tmp_path / "c"))
    use(cache)
    cache.keep_reply("a request", reply_of())
    made = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {folder_of(work) / name for name in ("lock", "reply", "rounds", "turn")}
    assert len(folder_of(work).name) == 32
    assert stat.S_IMODE(folder_of(work).stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder_of(work) / name).stat().st_mode) for name in ("reply", "rounds")} == {0o600}


def test_an_evaluation_is_of_one_state(tmp_path: Path, state: GlobalState, domain: KeyDomain) -> None:
    """Loss and decision are those of the last state of its round only; two rounds are kept, and no third."""
    other = replace(initial_state(domain, run_spec_of(domain), seed=1), round=1, attempt=1)
    second, third = replace(state, round=2), replace(state, round=3)
    evaluation = {"counts": {"examples": 2, "loss": 0.1}, "reason": ""}
    ReplyCache(tmp_path, NONCE).keep(state, 0.1, evaluation)
    cache = ReplyCache(tmp_path, NONCE)
    assert (cache.evaluation(state), cache.loss_of(state)) == (evaluation, 0.1)
    assert cache.evaluation(other) is cache.loss_of(other) is cache.evaluation(second) is None
    with pytest.raises(FederationError, match="is not the one that this site computed"):
        cache.require_same(other)
    cache.keep(second, None, {**evaluation, "reason": "too far"})
    assert cache.evaluation(second) == {**evaluation, "reason": "too far"}
    assert cache.loss_of(second) is None
    assert cache.evaluation(state) == evaluation
    cache.keep(third, 0.3, evaluation)
    assert cache.evaluation(state) is None
    assert cache.evaluation(second) is not None
    cache.require_same(other)  # of a round that it knows nothing of any more
    repeated = replace(third, attempt=2)
    cache.keep(repeated, 0.4, evaluation)
    assert cache.evaluation(third) is None
    with pytest.raises(FederationError, match="is of attempt 1, and this site has computed attempt 2"):
        cache.require_same(third)
