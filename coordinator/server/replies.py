"""Checks of a site's replies in a run in clear: all that the coordinator can see of them, before it uses them."""

from dataclasses import dataclass

from flwr.app import MetricRecord, RecordDict

from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Contribution, Round
from fedpp.config.run_config import SPLITS
from fedpp.errors import FederationError, MaskError, ModelError
from fedpp.protocol import messages
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import LabelCounts, require
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription


class MisfitError(FederationError):
    """An update does not fit its round: its site gets no more requests."""


@dataclass(frozen=True)
class Reply:
    """A site's evaluation of a new global model."""

    counts: AnyCounts
    verdict: messages.Verdict
    state: bytes | None  # of the new round, if it was requested


def accept_update(
    content: RecordDict, site: SiteDescription, run_spec: RunSpec, due: Round
) -> tuple[Contribution, EncodedUpdate]:
    """Return a site's contribution and encoded update; raise `MisfitError` if they do not fit the round."""
    try:
        _require_origin(messages.Origin.read(content), run_spec.domain, due)
        weight = run_spec.weight(site.sequences[0])
        _require_examples(messages.record(content, messages.METRICS, MetricRecord).get(messages.EXAMPLES), weight)
        update = messages.words_of(content, due.ring.bits, due.length)
        due.ring.require_within(update, weight)
        return Contribution(site.name, weight), update
    except (FederationError, MaskError) as error:
        raise MisfitError(str(error)) from None


def accept_labels(content: RecordDict, site: SiteDescription) -> LabelCounts:
    """Return a site's counts of training labels; raise `MisfitError` if they do not fit its description."""
    try:
        counted = messages.record(content, messages.METRICS, MetricRecord).get(messages.LABELS)
        whole = [count for count in counted if isinstance(count, int)] if isinstance(counted, list) else []
        return require(whole, site.task, site.sequences[0])
    except FederationError as error:
        raise MisfitError(str(error)) from None


def base_of(content: RecordDict) -> str:
    """Return the digest of the state that an accepted update starts from, as its site reports it."""
    return Round.from_json(messages.Origin.read(content).round).base


def accept_evaluation(content: RecordDict, site: SiteDescription) -> Reply:
    """Return a site's evaluation of a new model; raise `FederationError` if it does not fit."""
    counts = accept_counts(content, site, "validation")
    state, verdict = (
        messages.state_of(content) if messages.ARRAYS in content else None,
        messages.Verdict.read(content),
    )
    if state is not None and digest_of(state) != verdict.digest:
        raise FederationError("its state is another than its verdict names")
    return Reply(counts, verdict, state)


def accept_counts(content: RecordDict, site: SiteDescription, split: str) -> AnyCounts:
    """Return a site's evaluation counts; raise `FederationError` if they do not fit the site's description."""
    kind = FindingCounts if site.task.multi_label else Counts
    counts = kind.from_mapping(messages.record(content, messages.METRICS, MetricRecord))
    announced = site.sequences[SPLITS.index(split)]
    classes = len(counts.findings if isinstance(counts, FindingCounts) else counts.confusion)
    if (counts.examples, classes) != (announced, len(site.task.classes)):
        kinds = "findings" if site.task.multi_label else "classes"
        raise FederationError(
            f"it counts {counts.examples} examples of {classes} {kinds} and "
            f"announced {announced} of {len(site.task.classes)}"
        )
    return counts


def _require_origin(reported: messages.Origin, domain: str, due: Round) -> None:
    """Raise `FederationError` unless an update is of this domain, round, attempt, model and run specification."""
    if reported.domain != domain:
        raise FederationError(
            f"its update is of domain {reported.domain[:16]!r} (or key epoch), this run of {domain[:16]!r}"
        )
    of = Round.from_json(reported.round)
    for name, value in vars(due).items():
        if getattr(of, name) != value:
            raise FederationError(f"its update is of {name} {getattr(of, name)!r:.40}, due is {value!r:.40}")


def _require_examples(counted: object, weight: int) -> None:
    if counted != weight:
        raise FederationError(f"it counts {counted!r:.40} examples, and by what it announced these are {weight}")


def digest_of(state: bytes) -> str:
    """Return the digest of a state in clear; raise `FederationError` if it is damaged."""
    try:
        return GlobalState.from_bytes(state).digest
    except ModelError as error:
        raise FederationError(f"its state does not fit: {error}") from None
