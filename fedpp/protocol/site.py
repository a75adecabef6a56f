"""What a site says of itself when the coordinator asks: public facts only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from fedpp.config import SPLITS
from fedpp.errors import FederationError


@dataclass(frozen=True)
class SiteDescription:
    """A site's name, key domain and dataset; counts are of sequences and patients in each split."""

    name: str
    domain: str  # fingerprint
    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    sequences: tuple[int, ...]  # in the order of SPLITS
    patients: tuple[int, ...]

    def task(self) -> tuple[object, ...]:
        """Return what all sites of a federation must share: the shape of a sequence and the classes."""
        return (self.frames, self.height, self.width, self.channels, self.classes)

    def to_mapping(self) -> dict[str, Any]:
        """Return flat values, fit for JSON and for Flower's ConfigRecord."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `FederationError` for anything else."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            site = cls(**fields)
        except TypeError as error:
            raise FederationError(f"a site's description does not fit: {error}") from None
        if len(site.sequences) != len(SPLITS) or len(site.patients) != len(SPLITS):
            raise FederationError(f"site {site.name} must count the splits {SPLITS}, got {site.sequences}")
        return site
