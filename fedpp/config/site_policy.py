"""Site policy: what a hospital allows on its own machines, in the file `site.yaml`.

It lists the app bundles that may run (`bundles`), the datasets that may be used (`datasets`), the requests that are
answered (`requests`), how much an evaluation may disclose (`evaluation`), what a run contract may say (`limits`), the
last day (`until`) and the fewest other sites (`min-other-sites`). The site's launcher reads it before any code of a
bundle runs; the ClientApp and the vault enforce the rest. A `PolicyError` never holds a path, since it may be sent to
the coordinator.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml

from fedpp.config.contract_limits import RunLimits
from fedpp.errors import ConfigError, PolicyError
from fedpp.settings_file import load_settings, parse_settings
from fedpp.values import Declared, Listed, Rule, hexadecimal, one_of, whole

# The requests to a site, by the type of Flower's message that carries them.
REQUEST_OF_MESSAGE = {
    "query.describe": "describe",
    "query.initial_weights": "initial-weights",
    "train": "train",
    "query.accept": "accept",
    "evaluate": "evaluate",
    "query.local_baseline": "local-baseline",
    **dict.fromkeys(
        (
            "query.accept_run",
            "query.reveal_coin",
            "query.start_run",
            "train.masked_round",
            "query.release",
            "query.step",
            "query.where",
            "query.fetch",
            "query.load",
            "query.abandon",
        ),
        "train",
    ),
    "query.report": "evaluate",
}
REQUESTS = tuple(dict.fromkeys(REQUEST_OF_MESSAGE.values()))
SecureAggregation = Literal["required", "optional"]

_MAX = 2**31 - 1
_ADVICE = "nothing is allowed; `fedpp-site policy` writes one to begin with"
Limit = Annotated[int, whole(1, _MAX)]
Hashes = Annotated[tuple[Annotated[str, hexadecimal()], ...], Listed(distinct=True)]


def _day(value: object) -> date | None:
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    if isinstance(value, str):  # quoted
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise ValueError


@dataclass(frozen=True)
class EvaluationLimits(Declared, label="evaluation", hyphens=True):
    """Limits of the vault's `Evaluate`: how many evaluation counts it discloses."""

    min_patients: Limit = 10  # of a split, and of a finding in it: counts over fewer nearly give single results away
    per_round: Limit = 9  # calls of one round and split: two in each of three tries, and three to do some again
    rounds: Limit = 1000  # of one run
    per_day: Limit = 2000  # calls within 24 hours

    def warning(self, patients: Mapping[str, int]) -> str:
        """Return a line about the splits with too few patients, by the number of each, for runs to accept the site."""
        few = [f"{split} ({number})" for split, number in patients.items() if 0 < number < self.min_patients]
        if not few:
            return ""
        return (
            f"too few patients in {', '.join(few)}: a run needs {self.min_patients} in each split that is not empty; "
            "ingest more or with other shares, or set evaluation: min-patients in site.yaml"
        )


@dataclass(frozen=True)
class SitePolicy(Declared, label="policy", hyphens=True):
    """A site's decisions, as its `site.yaml` states them."""

    bundles: Hashes  # SHA-256 of the app bundles that may run here; empty: none
    datasets: Hashes  # fingerprints of the datasets that may be used
    requests: Annotated[tuple[Annotated[str, one_of(*REQUESTS)], ...], Listed(distinct=True)] = REQUESTS
    evaluation: EvaluationLimits = EvaluationLimits()
    limits: RunLimits = RunLimits()
    until: Annotated[date | None, Rule("a date like 2030-12-31", _day)] = None  # the last day of the policy
    min_other_sites: Annotated[int, whole(0, _MAX)] = 1  # fewest other certified sites in a run, and in an aggregate
    secure_aggregation: SecureAggregation = "required"  # optional: the coordinator may also see updates in clear

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy file; raise `ConfigError` for anything that is not one."""
        values = load_settings(path, "policy", _ADVICE)
        try:
            return cls._of_file(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a policy file; raise `ConfigError` for anything that is not one."""
        return cls._of_file(parse_settings(text, "policy", _ADVICE))

    @classmethod
    def _of_file(cls, values: dict[str, Any]) -> Self:
        lists: dict[str, Any] = {
            name: [] for name in ("bundles", "datasets") if values.get(name, "") is None
        }  # emptied by hand
        policy = cls.from_mapping(values | lists)
        if not policy.datasets:
            raise cls._refused("datasets must be a list of at least one, got []: nothing else is allowed to be used")
        return policy

    def to_yaml(self) -> str:
        """Return the text that `parse` reads to an equal policy."""
        values = {name: value for name, value in self.to_mapping().items() if value is not None}
        return yaml.safe_dump(values, sort_keys=False)

    def require_bundle(self, bundle: str) -> None:
        """Raise `PolicyError` unless the app bundle of this SHA-256 may run here."""
        if bundle not in self.bundles:
            raise PolicyError(f"this site has not approved bundle {bundle}: ask its staff to review it")

    def require_dataset(self, fingerprint: str) -> None:
        """Raise `PolicyError` unless the dataset of this fingerprint may be used."""
        if fingerprint not in self.datasets:
            raise PolicyError(f"this site's policy does not list its dataset {fingerprint[:16]}: its staff can add it")

    def require_request(self, name: str) -> None:
        """Raise `PolicyError` unless this request, as `request_of` names it, is allowed."""
        if name not in self.requests:
            raise PolicyError(f"this site's policy does not allow to answer {name!r:.40}: its staff decides")

    def require_current(self, today: date) -> None:
        """Raise `PolicyError` after the last day of the policy."""
        if self.until is not None and today > self.until:
            raise PolicyError(f"this site's policy ended with {self.until}: ask its staff to prolong it")

    def require_participants(self, others: int) -> None:
        """Raise `PolicyError` unless so many other certified sites in a run are enough."""
        if others < self.min_other_sites:
            raise PolicyError(
                f"this site's policy wants {self.min_other_sites} other sites in a run, got {others}: ask more to join"
            )

    def require_secure_aggregation(self, *, masked: bool) -> None:
        """Raise `PolicyError` for a run without secure aggregation, unless it is optional here."""
        if not masked and self.secure_aggregation == "required":
            raise PolicyError(
                "this site's policy requires secure aggregation, and the run has it off: the site's staff decides"
            )


def today() -> date:
    """Return the current day of this machine, to which `until` is compared."""
    return datetime.now().astimezone().date()


def request_of(message_type: str) -> str:
    """Return the policy's name of a message's request; its type itself, which no policy allows, for unknown ones."""
    return REQUEST_OF_MESSAGE.get(message_type, message_type)


def starting_text(dataset: str) -> str:
    """Return the commented text of a site's first policy: this dataset, and no bundle."""
    return _STARTING.format(dataset=dataset, **EvaluationLimits().values(), **RunLimits().values())


_STARTING = """\
# What this hospital allows. It is read anew for every message: a change counts at once, without a restart.
# Keep it writable by those who decide, and readable for the user that runs `fedpp-site join`.

# Which code may run: SHA-256 of reviewed app bundles. `fedpp-site review` shows one, `fedpp-site approve` adds it.
bundles: []

# Which data may be used: fingerprints of encrypted datasets.
datasets:
  - "{dataset}"

# Which requests are answered.
requests: [describe, initial-weights, train, accept, evaluate, local-baseline]

# How much the vault's evaluations may disclose.
evaluation:
  min-patients: {min_patients}  # counts over fewer, of a split or of a finding, are withheld
  per-round: {per_round}  # evaluations of one round and split; a try of a round takes two of split validation, of the
                # trained and of the new model, and one more where an interrupted training is repeated
  rounds: {rounds}  # of one run
  per-day: {per_day}  # evaluations in total

# Which runs with secure aggregation the vault joins without asking you. docs/reference/site_policy.md has all limits.
limits:
  # members: [East, West]  # the only sites that may take part; without it, any that the domain has certified
  min-honest: {min_honest}  # sites besides colluding ones in each sum
  colluders: {colluders}  # members that may collude with the coordinator, for which the run must still be safe
  max-rounds: {max_rounds}  # of training
  max-learning-rate: {max_learning_rate}
  min-server-learning-rate: {min_server_learning_rate}  # a smaller one makes models that hardly differ
  reporting: {reporting}  # per-site: figures of this site alone may go to the coordinator, too
  max-runs: {max_runs}  # started in a year
  max-starts: {max_starts}  # tries to start one in a day
  two-sites: {two_sites}  # accepted: a run of two sites, in which each can compute the other's update

# How long: the last day, such as 2030-12-31. Without it there is no end.
# until: 2030-12-31

# The fewest other certified sites of the domain in a run, and in an aggregate that holds this site's update.
# The aggregate of two sites shows each of them the other's update.
min-other-sites: 1

# Whether updates go to the coordinator under a mask only: required, or optional (it may see them in clear).
secure-aggregation: required
"""
