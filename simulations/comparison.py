"""What a simulated federation is set beside: the same task trained otherwise, and its sites' patients."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpp.reporting.report import Baselines, Parity, SharedPatients, SiteBaselines


@dataclass(frozen=True)
class Comparison:
    """Figures of a scenario's baselines, and the distance of ciphertext from the plaintext reference."""

    patients: SharedPatients
    together: Baselines = field(default_factory=Baselines)  # on all test splits
    by_site: Mapping[str, SiteBaselines] = field(default_factory=dict)  # on each site's own
    parity: Parity | None = None
