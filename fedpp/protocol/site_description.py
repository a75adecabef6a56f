"""What a site says of itself when the coordinator asks: public facts only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from fedpp.config.model_spec import GAPS, Gaps
from fedpp.config.run_config import MAX_EXAMPLES, SPLITS
from fedpp.errors import FederationError
from fedpp.protocol.membership import is_site_name

LONGEST_CLASS = 200  # characters of a class's name
MAX_CLASSES = 1000
_COUNTS = ("n", "frames", "height", "width", "channels", "patch")


@dataclass(frozen=True)
class SiteDescription:
    """A site's name, key domain and dataset; counts are of sequences and patients in each split."""

    name: str
    domain: str  # fingerprint
    n: int  # slots of a row
    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]  # none if the dataset has no labels
    multi_label: bool
    gaps: Gaps
    patch: int
    sequences: tuple[int, ...]  # in the order of SPLITS
    patients: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse values of another type, out of range, or that a terminal would not just show."""
        fits = {
            "name": is_site_name(self.name),
            "domain": _is_text(self.domain),
            **{name: _is_count(getattr(self, name)) for name in _COUNTS},
            "classes": isinstance(self.classes, tuple)
            and len(self.classes) <= MAX_CLASSES
            and all(map(_is_text, self.classes))
            and len(set(self.classes)) == len(self.classes),
            "multi_label": type(self.multi_label) is bool,
            "gaps": self.gaps in GAPS,
            "sequences": _is_split_counts(self.sequences),
            "patients": _is_split_counts(self.patients),
        }
        for name, fit in fits.items():
            if not fit:
                raise FederationError(
                    f"a site's description does not fit: its {name} cannot be {getattr(self, name)!r:.80}"
                )

    def to_mapping(self) -> dict[str, Any]:
        """Return flat values, fit for JSON and for Flower's ConfigRecord."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `FederationError` for anything else."""
        wrong = sorted(set(values) ^ {field.name for field in fields(cls)})
        if wrong:
            raise FederationError(f"a site's description does not fit: unknown or missing {', '.join(wrong)!r:.80}")
        typed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**typed)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_CLASS and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_EXAMPLES  # no image has more rows, either


def _is_split_counts(values: object) -> bool:
    return isinstance(values, tuple) and len(values) == len(SPLITS) and all(map(_is_count, values))
