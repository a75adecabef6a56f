"""What all questions of a run say alike."""

import json
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Self

from fedpp.config.hyperparameters import Hyperparameters, ServerOptimizerConfig
from fedpp.config.model_spec import MAX_PARAMETERS, ModelSpec
from fedpp.config.run_config import DTYPES, MAX_EXAMPLES, MAX_SITES, Dtype
from fedpp.errors import ConfigError, FederationError
from fedpp.protocol.site_description import SiteDescription
from fedpp.texts import one_line
from fedpp.values import canonical, is_hex

_BOUNDS = {
    "seed": (0, 2**63 - 1),
    "epochs": (1, 1000),
    "examples": (1, MAX_EXAMPLES),
    "sites": (1, MAX_SITES),
    "max_examples": (0, MAX_EXAMPLES),
}


@dataclass(frozen=True)
class RunSpec:
    """What is trained and how, and how updates are added up."""

    domain: str  # fingerprint; a site of another domain refuses
    network: ModelSpec
    dtype: Dtype
    hyperparameters: Hyperparameters
    rule: ServerOptimizerConfig
    epochs: int
    seed: int
    masked: bool
    examples: int  # what the updates of all admitted sites count
    sites: int  # that were admitted
    max_examples: int  # that one site's update counts; 0: all of them
    bound: float  # largest magnitude of an update's value
    max_norm: float  # of an update, as a share of the global model's norm
    max_loss_increase: float  # of a site's validation loss, in nats

    def __post_init__(self) -> None:
        """Refuse settings that no site should work on; numbers become floats, so that equal plans are one text."""
        if not is_hex(self.domain):
            raise FederationError(f"domain must be a fingerprint of 64 hex digits, got {self.domain!r:.80}")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise FederationError(f"{name} must be a whole number from {least} to {most}, got {value!r:.40}")
        for name in ("bound", "max_norm", "max_loss_increase"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not 0 < value <= sys.float_info.max:
                raise FederationError(f"{name} must be a positive number, got {value!r:.40}")
            object.__setattr__(self, name, float(value))
        if self.dtype not in DTYPES:
            raise FederationError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r:.40}")
        if type(self.masked) is not bool:
            raise FederationError(f"masked must be true or false, got {self.masked!r:.40}")
        if self.network.parameters() > MAX_PARAMETERS:  # which may be a number that no float holds
            raise FederationError(
                f"a network may have {MAX_PARAMETERS} parameters, this one has more: use smaller images or layers"
            )

    def of_sites(self, sites: Collection[SiteDescription]) -> Self:
        """Return the plan with these sites admitted; raise `FederationError` if they have too many examples."""
        return replace(self, examples=sum(self.weight(site.sequences[0]) for site in sites), sites=len(sites))

    def weight(self, sequences: int) -> int:
        """Return how many examples the update of a site with so many training sequences counts."""
        return min(sequences, self.max_examples or sequences)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical({**asdict(self), "network": self.network.to_json()}).decode()

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its text, in hex."""
        return sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `FederationError` for anything else."""
        try:
            values = json.loads(text)
            parts = {
                "network": ModelSpec.from_json(values["network"]),
                "hyperparameters": Hyperparameters(**values["hyperparameters"]),
                "rule": ServerOptimizerConfig(**values["rule"]),
            }
            return cls(**{**values, **parts})
        except (TypeError, ValueError, KeyError, RecursionError, ConfigError, FederationError) as error:
            raise FederationError(f"the coordinator's request does not fit: {one_line(str(error))}") from None
