"""A site that joins while a run goes on takes part from the next round, or is refused by name; nobody waits for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_runs import CARD, LocalGrid, Site, config, describe, described, refusal
from flwr.app import ConfigRecord, Message, RecordDict
from masked_sites import opened
from members import run_of

from coordinator.server.app import federate
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol import messages
from fedpp.protocol.participants import Participants

AT_ROUND_2 = 2  # looks at the nodes before: one before the run, and one before round 1


def seen(site: Site) -> list[tuple[int, int, int]]:
    """Return what each question to train said: training sequences, sites, and members beside this one."""
    found = []
    for kind, content in zip(site.asked, site.seen, strict=True):
        if kind == "train":
            run_spec = messages.TrainRequest.of(content).run_spec
            company = Participants.from_record(messages.record(content, messages.PARTICIPANTS, ConfigRecord))
            others = company.others(site.description.name, run_of(CARD, company.nonce), datetime.now(UTC))
            found.append((run_spec.examples, run_spec.sites, others))
    return found


@pytest.mark.parametrize("masking", [True, False])
def test_a_site_that_joins_late_takes_part_from_the_next_round(
    masking: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its update is in the sum of that round, every site learns of it, and the ring has room for it."""
    late = Site(describe("aa", sequences=(4, 2, 1)), step=0.5)
    sites = [Site(describe("a"), step=0.25), Site(describe("b"), step=-0.125), late]
    record = federate(LocalGrid(sites, joins={3: AT_ROUND_2}), config(tmp_path, rounds=3, secure_aggregation=masking))
    assert [of.sites for of in record.rounds] == [("a", "b"), ("a", "aa", "b"), ("a", "aa", "b")]
    assert [set(of.validation) for of in record.rounds] == [{"a", "b"}, {"a", "aa", "b"}, {"a", "aa", "b"}]
    assert [of.together.examples for of in record.rounds] == [4, 6, 6]
    assert [site.name for site in record.sites] == ["a", "aa", "b"]
    assert set(record.test) == set(record.datasets) == {"a", "aa", "b"}
    assert [seen(site) for site in sites] == [[(6, 2, 1), (10, 3, 2), (10, 3, 2)]] * 2 + [[(10, 3, 2)] * 2]
    first, later = (3 * 0.25 - 3 * 0.125) / 6, (3 * 0.25 - 3 * 0.125 + 4 * 0.5) / 10
    final = opened((tmp_path / "model.sealed").read_bytes()) if masking else EncryptedModel.load(tmp_path / "model.npz")
    np.testing.assert_allclose(final.rows["dense/bias"], first + 2 * later, rtol=1e-15)
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
def test_who_cannot_join_is_refused_and_nobody_else(late: list[Any], name: str, reason: str, tmp_path: Path) -> None:
    """Who was admitted goes on, whoever comes; the record names who was refused."""
    sites = [*map(Site, late), Site(describe("a")), Site(describe("b"))]
    joins = dict.fromkeys(range(1, 1 + len(late)), AT_ROUND_2)
    record = federate(LocalGrid(sites, joins=joins), config(tmp_path))
    assert [of.sites for of in record.rounds] == [("a", "b")] * 2
    assert reason in record.refused[name]
    assert len(record.refused) == len(late)
    assert [site.asked for site in sites[:-2]] == [["query.describe"]] * len(late)


def test_a_site_that_no_sum_has_room_for_is_refused_alone(tmp_path: Path) -> None:
    """So many examples would wrap: the run goes on with the others, those that join later as well."""
    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c", sequences=(2**31 - 3, 2, 1)))]
    sites.append(Site(describe("d")))
    record = federate(LocalGrid(sites, joins={3: AT_ROUND_2, 4: AT_ROUND_2}), config(tmp_path))
    assert [of.sites for of in record.rounds] == [("a", "b"), ("a", "b", "d")]
    assert "with its 2147483645 training sequences the run has over 2147483648" in record.refused["c"]


def test_sites_whose_sum_has_no_word_do_not_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 32 bits fewer examples are too many: the run goes on, and says why."""
    sites = [Site(describe("a")), Site(describe("b")), Site(describe("c", sequences=(2**30, 2, 1)))]
    record = federate(LocalGrid(sites, joins={3: AT_ROUND_2}), config(tmp_path, dtype="float32"))
    assert [site.name for site in record.sites] == ["a", "b"]
    assert "continues without the sites that joined: an aggregate of 1073741830 examples" in capsys.readouterr().err


@dataclass
class Unready(Site):
    """A site that refuses to describe itself so many times."""

    times: int = 0

    def answer(self, question: Message) -> RecordDict | None:
        if question.metadata.message_type != "query.describe":
            return super().answer(question)
        self.times -= 1
        self.asked.append("query.describe")
        self.seen.append(question.content)
        return refusal(reason="its vault does not answer") if self.times >= 0 else described(self.description, question)


class Restarting(LocalGrid):
    """Nodes that are away at some looks."""

    def __init__(self, sites: list[Site], away: Mapping[int, int]) -> None:
        super().__init__(sites)
        self._away = away

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if self._away.get(node) != self._looks]


@pytest.mark.parametrize("away", [None, 2, 3])
def test_a_site_that_was_refused_and_comes_back_is_asked_again(away: int | None, tmp_path: Path) -> None:
    """Refused before the run, it is admitted after a restart, and no longer stands among the refused."""
    unready = Unready(describe("c"), times=1)
    away_at = {3: away} if away else {}
    sites = [Site(describe("a")), Site(describe("b")), unready]
    record = federate(Restarting(sites, away_at), config(tmp_path, rounds=3))
    took_part = {None: [], 2: [2, 3], 3: [3]}[away]
    assert [number for number, of in enumerate(record.rounds, 1) if "c" in of.sites] == took_part
    assert set(record.refused) == (set() if away else {"node 3"})
    assert unready.asked.count("query.describe") == (2 if away else 1)


def test_a_site_that_was_away_for_a_round_is_not_asked_to_join_again(tmp_path: Path) -> None:
    """It is a site of the run: the next state is all that it needs."""
    sites = [Site(describe("a")), Site(describe("b"))]
    federate(Restarting(sites, {1: 2}), config(tmp_path, rounds=3))
    assert sites[0].asked.count("query.describe") == 1
