"""Site description: a site's reply to the coordinator's first query, public facts only."""

from dataclasses import dataclass
from typing import Annotated

from fedpp.config.run_config import MAX_EXAMPLES, SPLITS
from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.protocol.membership import SITE_NAME
from fedpp.values import Declared, Flat, Listed, hexadecimal, whole

_OF_SPLITS = Listed(len(SPLITS), len(SPLITS))
Count = Annotated[int, whole(0, MAX_EXAMPLES)]


@dataclass(frozen=True)
class SiteDescription(Declared, label="site description", error=FederationError):
    """A site's name, key domain and dataset; counts are of sequences and patients in each split."""

    name: Annotated[str, SITE_NAME]
    domain: Annotated[str, hexadecimal()]  # fingerprint
    n: Count  # slots of a row
    task: Annotated[Task, Flat()]
    sequences: Annotated[tuple[Count, ...], _OF_SPLITS]  # in the order of SPLITS
    patients: Annotated[tuple[Count, ...], _OF_SPLITS]
