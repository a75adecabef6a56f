"""Site policy: what a hospital allows on its own machines, in the file `site.yaml`.

It lists the app bundles that may run (`bundles`), the datasets that may be used (`datasets`), the requests that are
answered (`requests`), how much an evaluation may disclose (`evaluation`), the last day (`until`) and the fewest other
sites (`min-other-sites`). The site's launcher reads it before any code of a bundle runs; the ClientApp and the vault
enforce the rest. A `PolicyError` never holds a path, since it may be sent to the coordinator.
"""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml

from fedpp.errors import ConfigError, PolicyError
from fedpp.files import read_file
from fedpp.values import is_hex

# What may be asked of a site, by the type of Flower's message that asks it.
REQUEST_OF_MESSAGE = {
    "query.describe": "describe",
    "query.initial_weights": "initial-weights",
    "train": "train",
    "query.accept": "accept",
    "evaluate": "evaluate",
    "query.local_baseline": "local-baseline",
}
REQUESTS = tuple(REQUEST_OF_MESSAGE.values())
SecureAggregation = Literal["required", "optional"]

SECURE_AGGREGATION_CHOICES: tuple[SecureAggregation, ...] = get_args(SecureAggregation)
_MAX_BYTES = 2**20
_MAX = 2**31
_LONGEST = 200  # characters of a value; Python refuses to write out a number of thousands of digits


@dataclass(frozen=True)
class EvaluationLimits:
    """Limits of the vault's `Evaluate`: how many evaluation counts it discloses."""

    min_patients: int = 10  # of a split, and of a finding in it: counts over fewer nearly give single results away
    per_round: int = 9  # calls of one round and split: two in each of three attempts, and three to do some again
    rounds: int = 1000  # of one run
    per_day: int = 2000  # calls within 24 hours

    def __post_init__(self) -> None:
        """Refuse limits below 1."""
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"the score limit {name.replace('_', '-')} must be at least 1, got {value}")


@dataclass(frozen=True)
class SitePolicy:
    """A site's decisions, as its `site.yaml` states them."""

    bundles: tuple[str, ...]  # SHA-256 of the app bundles that may run here; empty: none
    datasets: tuple[str, ...]  # fingerprints of the datasets that may be used
    requests: tuple[str, ...] = REQUESTS
    evaluation: EvaluationLimits = EvaluationLimits()
    until: date | None = None  # the last day on which anything is answered
    min_other_sites: int = 1  # fewest other certified sites in a run, and in a sum that is unmasked
    secure_aggregation: SecureAggregation = "required"  # optional: the coordinator may also see updates in clear

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy file; raise `ConfigError` for anything that is not one."""
        try:
            content = read_file(path, _MAX_BYTES + 1)
        except FileNotFoundError:
            raise ConfigError(f"there is no site's policy {path}: `fedpp-site policy` writes one") from None
        except OSError as error:
            raise ConfigError(
                f"cannot read the site's policy {path}: {error.strerror}; it must be a file that this user can read"
            ) from None
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"the site's policy {path} is larger than {_MAX_BYTES} bytes: is it the right file?")
        try:
            return cls.parse(content.decode())
        except UnicodeDecodeError as error:
            raise ConfigError(f"the site's policy {path} is not UTF-8 at byte {error.start}: save it so") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a policy file; raise `ConfigError` for anything that is not one."""
        try:
            values = yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader
        except RecursionError:
            raise ConfigError("the policy is nested too deep: it is a flat list of settings") from None
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            reason = "".join(filter(str.isprintable, " ".join(str(error).split())))
            raise ConfigError(f"the policy is not YAML: {reason}") from None
        if values is None:
            raise ConfigError(
                "the policy is empty, so nothing is allowed: `fedpp-site policy` writes one to begin with"
            )
        known = {"bundles", "datasets", "requests", "evaluation", "until", "min-other-sites", "secure-aggregation"}
        values = _mapping("the policy", values, known, {"bundles", "datasets"})
        limits = _mapping(
            "evaluation", values.get("evaluation"), {name.replace("_", "-") for name in vars(EvaluationLimits())}
        )
        return cls(
            bundles=_hashes("bundles", values["bundles"]),
            datasets=_hashes("datasets", values["datasets"], least=1),
            requests=_requests(values.get("requests", list(REQUESTS))),
            evaluation=EvaluationLimits(
                **{name.replace("-", "_"): _whole(f"evaluation: {name}", value, 1) for name, value in limits.items()}
            ),
            until=_day(values.get("until")),
            min_other_sites=_whole("min-other-sites", values.get("min-other-sites", cls.min_other_sites), 0),
            secure_aggregation=_secure_aggregation(values.get("secure-aggregation", cls.secure_aggregation)),
        )

    def to_yaml(self) -> str:
        """Return the text that `parse` reads to an equal policy."""
        scores = {name.replace("_", "-"): value for name, value in vars(self.evaluation).items()}
        values = {
            "bundles": list(self.bundles),
            "datasets": list(self.datasets),
            "requests": list(self.requests),
            "evaluation": scores,
            **({} if self.until is None else {"until": self.until}),
            "min-other-sites": self.min_other_sites,
            "secure-aggregation": self.secure_aggregation,
        }
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
        """Raise `PolicyError` unless this question, such as `request_of` returns, may be answered."""
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
        """Raise `PolicyError` for a run without the domain mask, unless it is optional here."""
        if not masked and self.secure_aggregation == "required":
            raise PolicyError(
                "this site's policy requires secure aggregation, and the run has it off: the site's staff decides"
            )


def today() -> date:
    """Return the day by which `until` is read, the machine's own."""
    return datetime.now().astimezone().date()


def request_of(message_type: str) -> str:
    """Return which question a message asks; its type itself, which no policy allows, if it is none of ours."""
    return REQUEST_OF_MESSAGE.get(message_type, message_type)


def starting_text(dataset: str) -> str:
    """Return the commented text of a site's first policy: this dataset, no bundle yet."""
    return _STARTING.format(dataset=dataset, **vars(EvaluationLimits()))


_STARTING = """\
# What this hospital allows. It is read anew for every message: a change counts at once, without a restart.
# Keep it writable by those who decide, and readable for the user that runs `fedpp-site join`.

# Which code may run: SHA-256 of reviewed app bundles. `fedpp-site review` shows one, `fedpp-site approve` adds it.
bundles: []

# Which data may be used: fingerprints of encrypted datasets.
datasets:
  - "{dataset}"

# What may be asked.
requests: [describe, initial-weights, train, accept, evaluate, local-baseline]

# How much the vault's scores may tell.
evaluation:
  min-patients: {min_patients}  # counts over fewer are not told, of a split or of a finding
  per-round: {per_round}  # scores of one round and split; an attempt at a round takes two of split validation, of the
                # trained and of the new model, and one more where a training that was broken off is done again
  rounds: {rounds}  # of one run
  per-day: {per_day}  # scores in all

# How long: the last day, such as 2030-12-31. Without it there is no end.
# until: 2030-12-31

# In what company: the fewest other certified sites of the domain in a run, and in a sum in which this site's update is
# seen. A sum of two sites shows each of them the other's update.
min-other-sites: 1

# Whether updates go to the coordinator under a mask only: required, or optional (it may see them in clear).
secure-aggregation: required
"""


class _Loader(yaml.SafeLoader):
    """YAML's, but a key that stands twice is an error, and so is what a flat list of settings has no use for.

    PyYAML calls by a value's tag what expects a value of that kind, and fails in many ways on another one.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML has it without types
        line = event.start_mark.line + 1
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            raise ConfigError(
                f"the policy's line {line} holds a tag, an anchor or an alias ('!', '&', '*'): leave it out"
            )
        if len(getattr(event, "value", "")) > _LONGEST:
            raise ConfigError(f"the policy's line {line} holds a value of over {_LONGEST} characters: none is so long")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  PyYAML's signature
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice!r:.40} stands twice: leave one of them out")
        if "<<" in names:
            raise yaml.YAMLError("'<<' merges settings: write each where it belongs")
        return super().construct_mapping(node, deep)


# As YAML 1.2 has it: 010 is no octal, and 1:30 no number of minutes, to whoever reads the file.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9][0-9]*)$"), list("-0123456789"))


def _mapping(what: str, value: object, known: Collection[str], needed: Collection[str] = ()) -> Mapping[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be settings like 'name: value', got {value!r:.60}")
    wrong = [f"unknown {name!r:.40}" for name in value if name not in known]
    wrong += [f"missing {name}" for name in sorted(set(needed) - set(value))]
    if wrong:
        raise ConfigError(f"{what} does not fit: {', '.join(wrong)}; known are {', '.join(sorted(known))}")
    return value


def _hashes(name: str, value: object, *, least: int = 0) -> tuple[str, ...]:
    value = [] if value is None else value  # the last line of a list was taken out by hand
    if not isinstance(value, list) or len(value) < least:
        raise ConfigError(f"{name} must be a list{' of at least one' * least}, got {value!r:.60}")
    for item in value:
        if not is_hex(item):
            raise ConfigError(f"{name}: each must be 64 hexadecimal digits in lower case, quoted, got {item!r:.80}")
        if value.count(item) > 1:
            raise ConfigError(f"{name}: {item} stands twice: leave one of them out")
    return tuple(value)


def _requests(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or any(item not in REQUESTS for item in value) or len(set(value)) < len(value):
        raise ConfigError(f"requests must be a list of some of {', '.join(REQUESTS)}, each once, got {value!r:.100}")
    return tuple(value)


def _secure_aggregation(value: object) -> SecureAggregation:
    for known in SECURE_AGGREGATION_CHOICES:
        if value == known:
            return known
    raise ConfigError(f"secure-aggregation must be one of {', '.join(SECURE_AGGREGATION_CHOICES)}, got {value!r:.40}")


def _whole(name: str, value: object, least: int) -> int:
    if type(value) is not int or not least <= value < _MAX:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r:.40}")
    return value


def _day(value: object) -> date | None:
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    if isinstance(value, str):  # quoted
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise ConfigError(f"until must be a date like 2030-12-31, got {str(value)!r:.40}")
