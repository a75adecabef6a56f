"""Run record: the coordinator's public facts and evaluation counts of a finished federation, without weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import FederationError, FedppError
from fedpp.protocol.counts import Counts, MappedCounts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts, total
from fedpp.protocol.label_counts import LabelCounts
from fedpp.protocol.site_description import SiteDescription

RECORD = "federation.json"  # in the folder of a run's results
SEALED, CLEAR = "model.sealed", "model.npz"  # the result: sealed and certified, or in clear


@dataclass(frozen=True)
class RoundRecord:
    """One round: the sites that trained, the evaluation counts of the new model, and the duration.

    In a masked run `counts` are of all sites together, and those of single sites are known with per-site reports only.
    """

    number: int
    sites: tuple[str, ...]
    validation: Mapping[str, AnyCounts]  # site -> counts of the round's model on its validation split
    seconds: float
    attempt: int = 1  # the one whose model the sites adopted
    excluded: Mapping[str, str] = field(default_factory=dict)  # site -> why it gave nothing to that attempt
    flagged: Mapping[str, str] = field(default_factory=dict)  # site -> what is odd about its update
    counts: AnyCounts | None = None  # on the validation splits of all sites together; None: those of each add up to it

    @property
    def together(self) -> AnyCounts:
        """Return the validation counts of all sites together."""
        return total(self.validation.values()) if self.counts is None else self.counts

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        mapped = {"validation": _mapped(self.validation), "counts": self.counts and self.counts.to_mapping()}
        return _plain(self) | {"sites": list(self.sites), **mapped}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], kind: type[AnyCounts]) -> Self:
        """Read what `to_mapping` returned, with counts of this kind."""
        validation = _counts(values["validation"], kind)
        counts = _together(values["counts"], kind)
        return cls(**{**values, "sites": tuple(values["sites"]), "validation": validation, "counts": counts})


@dataclass(frozen=True)
class FederationRecord:
    """One finished federation."""

    domain: str  # fingerprint
    scheme: str  # of the domain
    bundle: str  # SHA-256 of the app bundle that ran
    run: str  # Flower's number
    masked: bool  # whether updates were masked, and the model sealed, for the coordinator
    seed: int
    dtype: Dtype
    network: ModelSpec
    sites: tuple[SiteDescription, ...]
    datasets: Mapping[str, str]  # site -> fingerprint of the dataset that it signed for
    refused: Mapping[str, str]  # site -> reason
    rounds: tuple[RoundRecord, ...]
    test: Mapping[str, AnyCounts]  # site -> counts of the final model on its test split
    seconds: float
    settings: Mapping[str, str | int | float]  # of the run, by name, as `RunConfig.reported` returns them
    quarantined: Mapping[str, str] = field(default_factory=dict)  # site whose update could not be one -> reason
    local_baseline: Mapping[str, AnyCounts] = field(default_factory=dict)  # site -> test counts of its local baseline

    counts: AnyCounts | None = None  # on the test splits of all sites together; None: those of each add up to it
    chosen: int = 0  # round whose model is the result, by the monitored figure; 0: the last one
    contract: str = ""  # digest of a masked run's contract
    certified: tuple[str, ...] = ()  # sites that signed a masked run's result
    changes: int = 0  # of a masked run's cohort by few sites, during the run
    lifted: tuple[str, ...] = ()  # sites and rounds whose locks were lifted without a burn
    labels: LabelCounts = ()  # training labels of all sites together, where they balance the loss

    def test_counts(self) -> AnyCounts:
        """Return the test counts of all sites together."""
        return total(self.test.values()) if self.counts is None else self.counts

    def result_round(self) -> RoundRecord:
        """Return the round whose model is the result; the first one where that is the initial model."""
        return next((of for of in self.rounds if of.number == self.chosen), self.rounds[-1])

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        return _plain(self) | {
            "network": self.network.to_json(),
            "sites": [site.to_mapping() for site in self.sites],
            "rounds": [r.to_mapping() for r in self.rounds],
            "test": _mapped(self.test),
            "counts": self.counts and self.counts.to_mapping(),
            "certified": list(self.certified),
            "lifted": list(self.lifted),
            "labels": list(self.labels),
            "local_baseline": _mapped(self.local_baseline),
        }

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `federation.json`; raise `FederationError` if it is missing or damaged."""
        try:
            values = json.loads(path.read_text())
            network = ModelSpec.from_json(values["network"])
            kind = FindingCounts if network.task.multi_label else Counts
            return cls(
                **{
                    **values,
                    "network": network,
                    "sites": tuple(SiteDescription.from_mapping(site) for site in values["sites"]),
                    "rounds": tuple(RoundRecord.from_mapping(r, kind) for r in values["rounds"]),
                    "test": _counts(values["test"], kind),
                    "counts": _together(values["counts"], kind),
                    "certified": tuple(values["certified"]),
                    "lifted": tuple(values["lifted"]),
                    "labels": tuple(map(int, values["labels"])),
                    "local_baseline": _counts(values["local_baseline"], kind),
                }
            )
        except OSError as error:
            raise FederationError(
                f"cannot read the federation's record {path}: {error.strerror}: a run writes it when it ends"
            ) from None
        except (FedppError, AttributeError, ValueError, KeyError, TypeError) as error:
            raise FederationError(f"{path} is not a federation's record: {error}") from None


def _plain(record: RoundRecord | FederationRecord) -> dict[str, Any]:
    """Return the fields of a record, its mappings as dictionaries."""
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(record).items()}


def _together(values: Mapping[str, Any] | None, kind: type[AnyCounts]) -> AnyCounts | None:
    return None if values is None else kind.from_mapping(values)


def _mapped(counts: Mapping[str, AnyCounts]) -> dict[str, MappedCounts]:
    return {site: of_site.to_mapping() for site, of_site in counts.items()}


def _counts(values: Mapping[str, Any], kind: type[AnyCounts]) -> dict[str, AnyCounts]:
    return {site: kind.from_mapping(of_site) for site, of_site in values.items()}
