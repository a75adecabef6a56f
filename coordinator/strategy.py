"""Federated averaging of ciphertext: the average of the rows is the row of the average.

McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, over all admitted sites in every round. Flower's own
FedAvg aggregates whatever arrives; here a reply that does not fit is left out and named (`accept_update`).
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedpp.config import SPLITS
from fedpp.errors import FederationError
from fedpp.learning.metrics import metrics
from fedpp.protocol import wire
from fedpp.protocol.counts import Counts
from fedpp.protocol.federation import RoundRecord
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts, total
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription

Rows = dict[str, NDArray[np.floating]]
T = TypeVar("T")


class EncryptedFedAvg(Strategy):
    """Train and evaluate on all admitted sites in each round; keep each round's counts and seconds."""

    def __init__(
        self,
        sites: Mapping[int, SiteDescription],
        train: wire.TrainRequest,
        evaluate: wire.EvaluateRequest,
        participants: Participants,
    ) -> None:
        self.sites = sites
        self._train, self._evaluate = train, evaluate
        self._participants = participants.to_record()
        self._started, self._round = 0.0, 0
        self._trained: tuple[str, ...] = ()
        self.rounds: list[RoundRecord] = []

    def summary(self) -> None:
        """Log who takes part."""
        log(INFO, "\t└──> Sites: %s", ", ".join(site.name for site in self.sites.values()))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights and the round's request to every site."""
        self._started, self._round = time.monotonic(), server_round
        request = dataclasses.replace(self._train, round=server_round)
        return self._messages(MessageType.TRAIN, arrays, request)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the accepted updates; raise `FederationError` if there is none."""
        updates = self._accepted(
            f"round {server_round}: update", replies, lambda reply, site: accept_update(reply, site, self._train)
        )
        self._trained = tuple(updates)
        return wire.pack_arrays(average(list(updates.values()))), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the new weights for scoring on the validation split."""
        return self.evaluation("validation", arrays, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add up the vaults' counts."""
        counts = self.counts("validation", replies)
        together = total(counts.values())
        record = RoundRecord(server_round, self._trained, together, time.monotonic() - self._started)
        self.rounds.append(record)
        took = f"{len(self._trained)} sites, {record.seconds:.1f} s"
        note(f"round {server_round}: {_figures(together)} on validation, {took}")
        return None

    def evaluation(self, split: str, arrays: ArrayRecord, after: int | None = None) -> list[Message]:
        """Return the questions for the counts of a split after a round, one a site; by default, after the whole run."""
        last = self._round + 1 if after is None else after
        request = dataclasses.replace(self._evaluate, split=split, round=last)
        return self._messages(MessageType.EVALUATE, arrays, request)

    def counts(self, split: str, replies: Iterable[Message]) -> dict[str, AnyCounts]:
        """Return each site's counts of a split; raise `FederationError` if no site sent any that fit."""
        return self._accepted(f"{split} counts", replies, lambda reply, site: accept_counts(reply, site, split))

    def _messages(self, kind: str, arrays: ArrayRecord, request: wire.Request) -> list[Message]:
        content = RecordDict(
            {wire.ARRAYS: arrays, wire.CONFIG: request.to_record(), wire.PARTICIPANTS: self._participants}
        )
        return [Message(content, dst_node_id=node, message_type=kind) for node in self.sites]

    def _accepted(
        self, what: str, replies: Iterable[Message], accept: Callable[[Message | None, SiteDescription], T]
    ) -> dict[str, T]:
        """Return what fits by site, and note why the others are left out; raise `FederationError` if none fits."""
        answered = {reply.metadata.src_node_id: reply for reply in replies}
        accepted: dict[str, T] = {}
        # In the order of the sites' names: a floating-point sum must not depend on who answers first.
        for node, site in self.sites.items():
            try:
                accepted[site.name] = accept(answered.get(node), site)
            except FederationError as error:
                note(f"{what} of {site.name} left out: {error}")
        if not accepted:
            raise FederationError(f"{what}: no site sent one that fits")
        return accepted


def note(text: str) -> None:
    """Tell the user on stderr how far the run is, in one line."""
    print(wire.one_line(text), file=sys.stderr, flush=True)


def _figures(counts: AnyCounts) -> str:
    figures = metrics(counts)
    shown = {"loss": figures.loss, "accuracy": figures.accuracy, "AUC": figures.auc}
    return ", ".join(f"{name} {'not defined' if v is None else f'{v:.3f}'}" for name, v in shown.items())


def accept_update(reply: Message | None, site: SiteDescription, request: wire.TrainRequest) -> tuple[int, Rows]:
    """Return a site's number of examples and its rows; raise `FederationError` if they do not fit."""
    content = wire.content_of(reply)
    rows = wire.rows_of(content, request.network, site.n, request.dtype)
    examples = wire.record(content, wire.METRICS, MetricRecord).get(wire.EXAMPLES)
    if examples != site.sequences[0]:
        raise FederationError(f"it counts {examples!r:.40} examples and announced {site.sequences[0]}")
    return site.sequences[0], rows


def accept_counts(reply: Message | None, site: SiteDescription, split: str) -> AnyCounts:
    """Return a site's counts of a split; raise `FederationError` if they do not fit the site's description."""
    kind = FindingCounts if site.multi_label else Counts
    counts = kind.from_mapping(wire.record(wire.content_of(reply), wire.METRICS, MetricRecord))
    announced = site.sequences[SPLITS.index(split)]
    classes = len(counts.findings if isinstance(counts, FindingCounts) else counts.confusion)
    if (counts.examples, classes) != (announced, len(site.classes)):
        raise FederationError(
            f"it counts {counts.examples} examples of {classes} {'findings' if site.multi_label else 'classes'} and "
            f"announced {announced} of {len(site.classes)}"
        )
    return counts


def average(updates: Sequence[tuple[int, Rows]]) -> Rows:
    """Return the mean of the arrays, weighted by the examples. Law: it commutes with decryption."""
    total = sum(examples for examples, _ in updates)
    return {
        name: np.sum([rows[name] * rows[name].dtype.type(k / total) for k, rows in updates], axis=0)
        for name in updates[0][1]
    }
