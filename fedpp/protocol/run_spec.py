"""Run specification: what is trained and how, and how updates are aggregated; every request of a run carries it."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Self

from fedpp.config.hyperparameters import MAX_EPOCHS, Training
from fedpp.config.model_spec import MAX_PARAMETERS, ModelSpec
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES, RunSettings, UpdateBounds
from fedpp.config.server_optimizer import SERVER_NAMES, ServerOptimizerConfig
from fedpp.config.task import Task
from fedpp.errors import ConfigError, FederationError
from fedpp.protocol.site_description import SiteDescription
from fedpp.values import Declared, Flat, hexadecimal, whole


@dataclass(frozen=True)
class RunSpec(Declared, label="run specification", error=FederationError):
    """The same at all sites of a round; its digest stands in the round's context, to which masks are bound."""

    domain: Annotated[str, hexadecimal()]  # fingerprint; a site of another domain refuses
    task: Annotated[Task, Flat()]
    training: Annotated[Training, Flat()]
    server_optimizer: Annotated[ServerOptimizerConfig, SERVER_NAMES]
    masked: bool  # whether updates are masked, and states sealed, for the coordinator
    examples: Annotated[int, whole(1, MAX_EXAMPLES)]  # what the updates of all admitted sites count
    sites: Annotated[int, whole(1, MAX_SITES)]  # that were admitted
    bounds: Annotated[UpdateBounds, Flat()]

    def __post_init__(self) -> None:
        """Refuse settings that no site should work on."""
        super().__post_init__()
        if self.training.epochs > MAX_EPOCHS:
            raise self._refused(f"epochs must be a whole number from 1 to {MAX_EPOCHS}, got {self.training.epochs}")
        try:
            parameters = self.network.parameters()
        except ConfigError as error:
            raise self._refused(str(error)) from None
        if parameters > MAX_PARAMETERS:  # which may be a number that no float holds
            raise self._refused(
                f"a network may have {MAX_PARAMETERS} parameters, this one has more: use smaller images or layers"
            )

    @cached_property
    def network(self) -> ModelSpec:
        """Return the specification of the network that is trained."""
        return ModelSpec(self.task, self.training.model)

    @classmethod
    def of_settings(cls, settings: RunSettings, domain: str, task: Task, *, masked: bool) -> Self:
        """Return the run specification of these settings, before its sites are counted."""
        return cls(
            domain=domain,
            task=task,
            training=settings.training,
            server_optimizer=settings.server_optimizer,
            masked=masked,
            examples=1,
            sites=1,
            bounds=settings.bounds,
        )

    def of_sites(self, sites: Collection[SiteDescription]) -> Self:
        """Return the run specification with these sites admitted; raise `FederationError` for too many examples."""
        return self.changed(examples=sum(self.weight(site.sequences[0]) for site in sites), sites=len(sites))

    def weight(self, sequences: int) -> int:
        """Return how many examples the update of a site with so many training sequences counts."""
        return min(sequences, self.bounds.max_examples or sequences)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its text, in hex."""
        return sha256(self.to_json().encode()).hexdigest()
