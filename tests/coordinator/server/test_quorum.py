"""Quorum and deadline of a round: waits, exclusions by name, and when a run fails."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from coordinator_runs import LocalGrid, Site, config, describe, model_of, refusal
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import http_grid

from coordinator.server import admission
from coordinator.server.app import federate
from coordinator.server.progress import Progress
from coordinator.server.run_state import RunState
from fedpp.errors import FederationError
from fedpp.protocol.messages import TrainRequest


def asked_to_train(message: Message, number: int) -> bool:
    """Tell whether a request is for the training of this round."""
    return message.metadata.message_type == "train" and TrainRequest.read(message.content).round == number


class Network(LocalGrid):
    """A network that loses a node at its request to train in round 2, for so many polls of the nodes."""

    def __init__(self, sites: Iterable[Site], lost: int, looks: int) -> None:
        super().__init__(sites)
        self.lost, self.looks, self.times = lost, looks, 0

    def get_node_ids(self) -> list[int]:
        there = super().get_node_ids()
        if self.times and self.looks > 0:
            self.looks -= 1
            return [node for node in there if node != self.lost]
        return there

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id == self.lost and asked_to_train(message, 2) and not self.times:
                self.times = 1
                ids.append(f"lost {time.monotonic_ns()}")
                message.metadata.__dict__["_message_id"] = ids[-1]
                away = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
                away.metadata.__dict__["_src_node_id"] = 1  # SuperLink's own error
                self._replies[ids[-1]] = away
            else:
                ids += super().push_messages([message])
        return ids


def test_a_round_closes_without_an_offline_site_and_the_next_one_has_it(tmp_path: Path) -> None:
    """With a quorum of others there is no wait: the site is named, and gets the next round's request."""
    sites = [Site(describe(name)) for name in "abc"]
    started = time.monotonic()
    record = federate(Network(sites, 3, looks=0), config(tmp_path, sites=3, rounds=3, **{"round-seconds": 60.0}))
    assert time.monotonic() - started < 30
    assert [of.sites for of in record.rounds] == [("a", "b", "c"), ("a", "b"), ("a", "b", "c")]
    assert record.rounds[1].excluded == {"c": "round 2: update: it is offline"}
    assert sites[2].asked.count("query.describe") == 1


def test_below_the_quorum_an_offline_site_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The round continues when the site is back: no accepted reply is requested twice."""
    sites = [Site(describe(name)) for name in "abc"]
    grid = Network(sites, 3, looks=3)
    record = federate(grid, config(tmp_path, sites=3, quorum=3, **{"wait-seconds": 60.0}))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2
    assert [site.asked.count("train") for site in sites] == [2, 2, 2]
    assert "round 2: update: 2 of a quorum of 3 sites; waiting for c, 60 s at most" in capsys.readouterr().err


def test_a_missing_quorum_fails_the_run_in_bounded_time(tmp_path: Path) -> None:
    """One line names the missing sites and what to do; the progress is failed; the accepted rounds are kept."""
    sites = [Site(describe(name)) for name in "abc"]
    started = time.monotonic()
    with pytest.raises(FederationError) as raised:
        federate(Network(sites, 3, looks=10**6), config(tmp_path, sites=3, quorum=3, **{"wait-seconds": 0.5}))
    assert time.monotonic() - started < 20
    assert str(raised.value) == (
        "round 2: update: 2 sites replied within 0 s more, the quorum is 3; missing are c: see that they run, and "
        "resume with run --resume"
    )
    ended = Progress.load(RunState(tmp_path).progress)
    assert (ended.phase, ended.reason, ended.round) == ("failed", str(raised.value), 2)
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], 1.0)


class Slow(LocalGrid):
    """A network in which node 3's reply to the training of round 2 arrives in the round `comes`."""

    def __init__(self, sites: Iterable[Site], comes: int) -> None:
        super().__init__(sites)
        self.comes, self.round, self.late = comes, 1, ""

    def push_messages(self, requests: Iterable[Message]) -> list[str]:
        ids = []
        for message in requests:
            ids += super().push_messages([message])
            if message.metadata.message_type == "train":
                self.round = TrainRequest.read(message.content).round
                if self.round == 2 and message.metadata.dst_node_id == 3:
                    self.late = ids[-1]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages([i for i in message_ids if i != self.late or self.round >= self.comes])


def rounds_asked(site: Site) -> list[int]:
    """Return the rounds for which a site got a request to train."""
    asked = zip(site.asked, site.seen, strict=True)
    return [TrainRequest.read(content).round for kind, content in asked if kind == "train"]


def test_a_straggler_is_named_and_gets_the_next_request(tmp_path: Path) -> None:
    """After the deadline the round closes without it."""
    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c"))]
    record = federate(Slow(sites, comes=3), config(tmp_path, sites=3, rounds=3, **{"round-seconds": 0.3}))
    assert [of.sites for of in record.rounds] == [("a", "b", "c"), ("a", "b"), ("a", "b", "c")]
    assert record.rounds[1].excluded == {"c": "round 2: update: no reply in time"}
    assert record.rounds[1].seconds >= 0.3
    assert [site.scored for site in sites] == [
        [("validation", 1), ("validation", 2), ("validation", 3), ("test", 4)],
        [("validation", 1), ("validation", 2), ("validation", 3), ("test", 4)],
        [("validation", 1), ("validation", 3), ("test", 4)],  # while it was busy it got no more requests
    ]


@pytest.mark.parametrize("comes", [4, 9])
def test_a_busy_site_gets_no_second_request(comes: int, tmp_path: Path) -> None:
    """It would miss every round; its reply may be lost, so it is not skipped twice in a row."""
    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c"))]
    record = federate(Slow(sites, comes), config(tmp_path, sites=3, rounds=5, **{"round-seconds": 0.3}))
    assert rounds_asked(sites[2]) == [1, 2, 4, 5]
    assert [of.number for of in record.rounds if "c" in of.sites] == [1, 4, 5]
    assert [dict(of.excluded) for of in record.rounds[2:]] == [{"c": "round 3: update: no reply in time"}, {}, {}]


def test_a_straggler_that_restarts_gets_the_request_at_once(tmp_path: Path) -> None:
    """Its earlier request is lost."""

    class Restarted(Slow):
        def get_nodes(self) -> list[NodeInfo]:
            restarts = {3: str(self.round > 2)}
            return [NodeInfo(node_id=node, last_activated_at=restarts.get(node, "")) for node in self.sites]

    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c"))]
    record = federate(Restarted(sites, 9), config(tmp_path, sites=3, rounds=3, **{"round-seconds": 0.5}))
    assert [of.sites for of in record.rounds] == [("a", "b", "c"), ("a", "b"), ("a", "b", "c")]


class Restarting(LocalGrid):
    """A node that restarts in round 2, which loses its request."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__(sites)
        self.restarts = 0

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at=f"{self.restarts if node == 3 else 0}") for node in self.sites]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id == 3 and asked_to_train(message, 2) and not self.restarts:
                self.restarts = 1
                ids.append("taken along")
                message.metadata.__dict__["_message_id"] = ids[-1]
            else:
                ids += super().push_messages([message])
        return ids


def test_a_site_that_restarts_in_a_round_gets_the_request_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flower does not report the lost request: without waiting for the deadline, the site takes part in the round."""
    sites = [Site(describe(name)) for name in "abc"]
    started = time.monotonic()
    record = federate(Restarting(sites), config(tmp_path, sites=3, **{"round-seconds": 60.0}))
    assert time.monotonic() - started < 30
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2
    assert "round 2: update: c restarted, and is sent the request again" in capsys.readouterr().err


class Losing(LocalGrid):
    """A network that loses a node's reply of round 2, the first time or always, and reports it."""

    def __init__(self, sites: Iterable[Site], times: int) -> None:
        super().__init__(sites)
        self.times = times

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids += super().push_messages([message])
            if message.metadata.dst_node_id == 3 and asked_to_train(message, 2) and self.times:
                self.times -= 1
                self._replies[ids[-1]] = lost(message)
        return ids


def lost(message: Message) -> Message:
    """Return SuperLink's error for a lost reply."""
    return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "objects are unavailable"), reply_to=message)


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_reply_is_requested_once_more(times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The site still has it; if it is lost again, the site is offline in this round."""
    sites = [Site(describe(name)) for name in "abc"]
    record = federate(Losing(sites, times), config(tmp_path, sites=3, rounds=3, **{"round-seconds": 60.0}))
    assert [of.sites for of in record.rounds] == [("a", "b", "c"), tuple("abc" if times == 1 else "ab"), tuple("abc")]
    text = capsys.readouterr().err
    assert text.count("round 2: update: the reply of c was lost, and is requested again") == 1


class Uploading(LocalGrid):
    """A network in which a node announces its reply of round 2, and its content never arrives."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__(sites)
        self.announced: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids += super().push_messages([message])
            if message.metadata.dst_node_id == 3 and asked_to_train(message, 2):
                del self._replies[ids[-1]]
                self.announced[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        for message in [self.announced.pop(i) for i in message_ids if i in self.announced]:
            with pytest.raises(ObjectPullError):
                http_grid.pull_objects(["object"], _never)
            return [lost(message)]
        return super().pull_messages(message_ids)


def _never(_: str) -> bytes:
    raise ObjectUnavailableError("object")


def test_an_announced_reply_does_not_hold_up_a_round(tmp_path: Path) -> None:
    """Flower waits two hours for it; at the deadline its site is a straggler like any other."""
    sites = [Site(describe(name)) for name in "abc"]
    started = time.monotonic()
    record = federate(Uploading(sites), config(tmp_path, sites=3, rounds=3, **{"round-seconds": 1.5}))
    assert time.monotonic() - started < 30
    assert [of.sites for of in record.rounds] == [("a", "b", "c"), ("a", "b"), ("a", "b", "c")]
    assert record.rounds[1].excluded == {"c": "round 2: update: no reply in time"}


class Timed(Site):
    """A site that records the time to live of its requests."""

    lives: float = 0.0

    def answer(self, message: Message) -> RecordDict | None:
        self.lives = message.metadata.ttl
        return super().answer(message)


def test_requests_live_as_long_as_the_longest_deadline(tmp_path: Path) -> None:
    """Flower would drop them after twelve hours."""
    sites = [Timed(describe("a")), Timed(describe("b"))]
    federate(LocalGrid(sites), config(tmp_path, rounds=3, **{"round-seconds": 20_000.0, "wait-seconds": 100.0}))
    assert [site.lives for site in sites] == [60_100.0] * 2


def test_a_site_that_restarts_before_its_description_gets_the_request_again(tmp_path: Path) -> None:
    """The request is lost, and Flower does not report it."""

    class Restarted(Restarting):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            requests = list(messages)
            if requests[0].metadata.dst_node_id == 3 and not self.restarts:
                self.restarts = 1
                return ["taken along"]
            return LocalGrid.push_messages(self, requests)

    sites = [Site(describe(name)) for name in "abc"]
    record = federate(Restarted(sites), config(tmp_path, sites=3, **{"wait-seconds": 5.0}))
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2


def test_a_lost_request_for_a_description_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grow, since the site may be busy with an earlier request; a lost reply is not waited for."""
    monkeypatch.setattr(admission, "REPEAT_SECONDS", 0.1)
    asked: list[float] = []

    class Deaf(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            requests = list(messages)
            if requests[0].metadata.message_type == "query.describe" and requests[0].metadata.dst_node_id == 3:
                asked.append(time.monotonic())
                if len(asked) < 4:
                    return [f"lost {len(asked)}"]
            return super().push_messages(requests)

    sites = [Site(describe(name)) for name in "abc"]
    started = time.monotonic()
    record = federate(Deaf(sites), config(tmp_path, sites=3, **{"wait-seconds": 60.0}))
    assert time.monotonic() - started < 30
    assert [of.sites for of in record.rounds] == [("a", "b", "c")] * 2
    pauses = [later - before for before, later in zip(asked, asked[1:], strict=False)]
    assert len(asked) == 4
    assert all(pause >= 0.1 * 2**number for number, pause in enumerate(pauses))


def test_sites_that_abstain_are_not_waited_for(tmp_path: Path) -> None:
    """A quorum that needs them is given up at once, in each attempt."""
    abstaining = {"train": refusal(reason="its gate")}
    sites = [Site(describe("a")), Site(describe("b"), abstaining), Site(describe("c"), abstaining)]
    started = time.monotonic()
    with pytest.raises(FederationError, match="round 1 was tried 2 times"):
        federate(LocalGrid(sites), config(tmp_path, sites=3, quorum=2, **{"wait-seconds": 60.0}))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("sites", "quorum", "least"), [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 0, 3), (4, 1, 1), (4, 4, 4)]
)
def test_by_default_a_quorum_is_more_than_half(sites: int, quorum: int, least: int, tmp_path: Path) -> None:
    """Of the sites that the run waits for, unless the configuration says how many."""
    assert config(tmp_path, sites=sites, quorum=quorum).min_sites() == least


def test_a_site_s_weight_is_capped(tmp_path: Path) -> None:
    """An update counts `max-examples` at most: the mean, by a hand-written loop."""
    examples: Mapping[str, int] = {"a": 3, "b": 8, "c": 100}
    steps = {"a": 0.25, "b": -0.125, "c": 0.5}
    sites = [Site(describe(name, sequences=(examples[name], 2, 1)), step=steps[name]) for name in examples]
    run = config(tmp_path, sites=3, rounds=1, **{"max-examples": 5})
    federate(LocalGrid(sites), run)
    mean = (3 * 0.25 - 5 * 0.125 + 5 * 0.5) / 13
    for rows in model_of(tmp_path).rows.values():
        np.testing.assert_allclose(rows, mean, rtol=1e-14)


def test_an_outlying_norm_is_flagged_and_still_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In clear the coordinator sees it; the record has it, and the site is not excluded."""
    steps = {"a": 0.01, "b": -0.01, "c": 0.012, "d": 0.2}
    sites = [Site(describe(name), step=step) for name, step in steps.items()]
    record = federate(LocalGrid(sites), config(tmp_path, sites=4, rounds=1))
    assert list(record.rounds[0].flagged) == ["d"]
    assert record.rounds[0].sites == ("a", "b", "c", "d")
    assert "round 1: look at d: its update's norm is" in capsys.readouterr().err
