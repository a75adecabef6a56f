"""What a coordinator writes of a finished federation: public facts and counts, no weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedpp.config import Dtype
from fedpp.errors import FederationError
from fedpp.network import NetworkSpec
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts, total
from fedpp.protocol.site import SiteDescription


@dataclass(frozen=True)
class RoundRecord:
    """One round: who trained, the validation counts of all sites together, and its duration."""

    number: int
    sites: tuple[str, ...]
    validation: AnyCounts
    seconds: float
    attempt: int = 1  # the one whose model the sites adopted
    left_out: Mapping[str, str] = field(default_factory=dict)  # site -> why it gave nothing to that attempt


@dataclass(frozen=True)
class FederationRecord:
    """One finished federation."""

    domain: str  # fingerprint
    bundle: str  # SHA-256 of the app bundle that ran
    run: str  # Flower's number
    masked: bool  # whether updates were masked, and the model sealed, for the coordinator
    seed: int
    dtype: Dtype
    network: NetworkSpec
    sites: tuple[SiteDescription, ...]
    datasets: Mapping[str, str]  # site -> fingerprint of the dataset that it signed for
    refused: Mapping[str, str]  # site -> reason
    rounds: tuple[RoundRecord, ...]
    test: Mapping[str, AnyCounts]  # site -> counts of the final model on its test split
    seconds: float

    def test_counts(self) -> AnyCounts:
        """Return the test counts of all sites together."""
        return total(self.test.values())

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        return {
            "domain": self.domain,
            "bundle": self.bundle,
            "run": self.run,
            "masked": self.masked,
            "seed": self.seed,
            "dtype": self.dtype,
            "network": self.network.to_json(),
            "sites": [site.to_mapping() for site in self.sites],
            "datasets": dict(self.datasets),
            "refused": dict(self.refused),
            "rounds": [
                {
                    "number": r.number,
                    "sites": list(r.sites),
                    "validation": r.validation.to_mapping(),
                    "seconds": r.seconds,
                    "attempt": r.attempt,
                    "left_out": dict(r.left_out),
                }
                for r in self.rounds
            ],
            "test": {site: counts.to_mapping() for site, counts in self.test.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `federation.json`; raise `FederationError` if it is missing or damaged."""
        try:
            values = json.loads(path.read_text())
            network = NetworkSpec.from_json(values["network"])
            kind = FindingCounts if network.multi_label else Counts
            return cls(
                **{
                    **values,
                    "network": network,
                    "sites": tuple(SiteDescription.from_mapping(site) for site in values["sites"]),
                    "rounds": tuple(
                        RoundRecord(
                            r["number"],
                            tuple(r["sites"]),
                            kind.from_mapping(r["validation"]),
                            r["seconds"],
                            r["attempt"],
                            r["left_out"],
                        )
                        for r in values["rounds"]
                    ),
                    "test": {site: kind.from_mapping(counts) for site, counts in values["test"].items()},
                }
            )
        except OSError as error:
            raise FederationError(f"cannot read the federation's record {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise FederationError(f"{path} is not a federation's record: {error}") from None
