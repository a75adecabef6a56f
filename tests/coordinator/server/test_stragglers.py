"""Sites that join during a run: admitted for the next round, or refused by name, without a wait."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_runs import CARD, LocalGrid, Site, config, describe, described, model_of, refusal
from flwr.app import ConfigRecord, Message, RecordDict
from members import run_of

from coordinator.server.app import federate
from fedpp.protocol import messages
from fedpp.protocol.participants import Participants

AT_ROUND_2 = 2  # polls of the nodes before: one before the run, and one before round 1


def seen(site: Site) -> list[tuple[int, int, int]]:
    """Return training sequences, sites, and other members, as in each request to train."""
    found = []
    for kind, content in zip(site.asked, site.seen, strict=True):
        if kind == "train":
            run_spec = messages.TrainRequest.read(content).run_spec
            company = Participants.from_record(messages.record(content, messages.PARTICIPANTS, ConfigRecord))
            others = company.others(site.description.name, run_of(CARD, company.nonce), datetime.now(UTC))
            found.append((run_spec.examples, run_spec.sites, others))
    return found


def test_a_site_that_joins_late_takes_part_from_the_next_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its update is in that round's aggregate, every site gets its proof, and the ring has room for it."""
    late = Site(describe("aa", sequences=(4, 2, 1)), step=0.5)
    sites = [Site(describe("a"), step=0.25), Site(describe("b"), step=-0.125), late]
    record = federate(LocalGrid(sites, joins={3: AT_ROUND_2}), config(tmp_path, rounds=3))
    assert [of.sites for of in record.rounds] == [("a", "b"), ("a", "aa", "b"), ("a", "aa", "b")]
    assert [set(of.validation) for of in record.rounds] == [{"a", "b"}, {"a", "aa", "b"}, {"a", "aa", "b"}]
    assert [of.together.examples for of in record.rounds] == [4, 6, 6]
    assert [site.name for site in record.sites] == ["a", "aa", "b"]
    assert set(record.test) == set(record.datasets) == {"a", "aa", "b"}
    assert [seen(site) for site in sites] == [[(6, 2, 1), (10, 3, 2), (10, 3, 2)]] * 2 + [[(10, 3, 2)] * 2]
    first, later = (3 * 0.25 - 3 * 0.125) / 6, (3 * 0.25 - 3 * 0.125 + 4 * 0.5) / 10
    np.testing.assert_allclose(model_of(tmp_path).rows["dense/bias"], first + 2 * later, rtol=1e-15)
    assert capsys.readouterr().err.count("admitted aa: (4, 2, 1) sequences") == 1


@pytest.mark.parametrize(
    ("late", "name", "reason"),
    [
        ([describe(name, classes=("x", "y")) for name in "cde"], "c", "its data are"),
        ([describe("a")], "a (node 1)", "its site joined already"),
        ([describe("c", domain="e" * 64)], "c (node 1, not proved)", "weights under different keys"),
        ([describe("c", sequences=(0, 2, 1))], "c", "no sequence to train on"),
    ],
    ids=["another task, of more sites", "a second node of a site", "another domain", "no data"],
)
def test_a_site_that_does_not_fit_is_refused_alone(late: list[Any], name: str, reason: str, tmp_path: Path) -> None:
    """Admitted sites stay, whoever joins; the record names the refused one."""
    sites = [*map(Site, late), Site(describe("a")), Site(describe("b"))]
    joins = dict.fromkeys(range(1, 1 + len(late)), AT_ROUND_2)
    record = federate(LocalGrid(sites, joins=joins), config(tmp_path))
    assert [of.sites for of in record.rounds] == [("a", "b")] * 2
    assert reason in record.refused[name]
    assert len(record.refused) == len(late)
    assert [site.asked for site in sites[:-2]] == [["query.describe"]] * len(late)


def test_a_site_with_too_many_examples_is_refused_alone(tmp_path: Path) -> None:
    """An aggregate of so many examples would wrap: the run continues with the others, also those that join later."""
    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c", sequences=(2**31 - 3, 2, 1)))]
    sites.append(Site(describe("d")))
    record = federate(LocalGrid(sites, joins={3: AT_ROUND_2, 4: AT_ROUND_2}), config(tmp_path))
    assert [of.sites for of in record.rounds] == [("a", "b"), ("a", "b", "d")]
    assert "with its 2147483645 training sequences the run has over 2147483648" in record.refused["c"]


def test_sites_that_exceed_the_ring_do_not_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 32 bits fewer examples are too many: the run continues, and logs the reason."""
    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c", sequences=(2**30, 2, 1)))]
    record = federate(LocalGrid(sites, joins={3: AT_ROUND_2}), config(tmp_path, dtype="float32"))
    assert [site.name for site in record.sites] == ["a", "b"]
    assert "continues without the sites that joined: an aggregate of 1073741830 examples" in capsys.readouterr().err


@dataclass
class Unready(Site):
    """A site that refuses its description so many times."""

    times: int = 0

    def answer(self, message: Message) -> RecordDict | None:
        if message.metadata.message_type != "query.describe":
            return super().answer(message)
        self.times -= 1
        self.asked.append("query.describe")
        self.seen.append(message.content)
        return refusal(reason="its vault does not answer") if self.times >= 0 else described(self.description, message)


class Restarting(LocalGrid):
    """Nodes that are offline at some polls."""

    def __init__(self, sites: list[Site], away: Mapping[int, int]) -> None:
        super().__init__(sites)
        self._away = away

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if self._away.get(node) != self._looks]


@pytest.mark.parametrize("offline_at", [None, 2, 3])
def test_a_refused_site_is_admitted_after_a_restart(offline_at: int | None, tmp_path: Path) -> None:
    """Refused before the run, it is admitted after a restart, and is no longer among the refused."""
    unready = Unready(describe("c"), times=1)
    offline = {3: offline_at} if offline_at else {}
    sites = [Site(describe("a")), Site(describe("b")), unready]
    record = federate(Restarting(sites, offline), config(tmp_path, rounds=3))
    took_part = {None: [], 2: [2, 3], 3: [3]}[offline_at]
    assert [number for number, of in enumerate(record.rounds, 1) if "c" in of.sites] == took_part
    assert set(record.refused) == (set() if offline_at else {"node 3"})
    assert unready.asked.count("query.describe") == (2 if offline_at else 1)


def test_a_site_that_was_offline_for_a_round_need_not_join_again(tmp_path: Path) -> None:
    """It is a site of the run: the next state is all that it needs."""
    sites = [Site(describe("a")), Site(describe("b"))]
    federate(Restarting(sites, {1: 2}), config(tmp_path, rounds=3))
    assert sites[0].asked.count("query.describe") == 1
