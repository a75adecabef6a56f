"""The settings of a run, parsed once into typed objects that reject what they do not know.

Nobody else indexes a configuration by string. `RunConfig` has no defaults: every default stands in
`[tool.flwr.app.config]` of pyproject.toml, since Flower only overrides names that stand there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf, prod
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

from fedpp.errors import ConfigError

Dtype = Literal["float32", "float64"]
Gaps = Literal["none", "public", "encrypted"]  # whether a dataset keeps the time between frames, and how
Initializer = Literal["glorot_uniform", "orthogonal", "zeros", "unit_forget_bias"]

DTYPES: tuple[Dtype, ...] = ("float32", "float64")
GAPS: tuple[Gaps, ...] = get_args(Gaps)
MOST_PARAMETERS = 50_000_000  # of a network that a site builds, or a vault draws weights for
SPLITS = ("train", "validation", "test")
LAYOUTS = ("auto", "frames", "manifest", "chexpert", "dicom", "breakhis", "images")  # of raw data
SITES_FOLDER = "FEDPP_SITES"  # environment variable: in a simulation, the folder of the site files


@dataclass(frozen=True)
class WeightSpec:
    """One weight of a network: its name, plaintext shape, and how Keras would initialise it."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer


class Described(Protocol):
    """What says of itself what its sequences are: a dataset's manifest, a vault's answer, a site's description."""

    @property
    def frames(self) -> int: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def gaps(self) -> Gaps: ...  # noqa: D102


@dataclass(frozen=True)
class Task:
    """What all sites of a federation share and a network must fit: the sequences, and what is asked of them."""

    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]  # none for data without labels
    gaps: bool  # whether the time between frames is an input; public or encrypted, the network is the same

    @classmethod
    def of(cls, data: Described) -> Self:
        """Return the task that these data are for."""
        gaps = data.gaps != "none"
        return cls(data.frames, data.height, data.width, data.channels, tuple(data.classes), gaps)

    def __str__(self) -> str:
        classes = f"{len(self.classes)} classes" + (f" ({', '.join(self.classes)})" if self.classes else "")
        return f"{_shape(self)}, {classes}"


@dataclass(frozen=True)
class NetworkSpec:
    """The CNN-Bi-LSTM of one task; both twins, plaintext and encrypted, are built from it.

    A sequence is `[frames, height, width, channels]`. Each entry of `filters` is a block of a convolution
    (`kernel` x `kernel`, same padding), 2 x 2 max pooling and ReLU; then a dense layer of `dense` units a frame,
    a bidirectional LSTM of `lstm` units a direction, and a linear layer of `classes` logits. With `gaps` the time
    since the frame before is one more feature of each frame, the last one that the LSTM sees.
    """

    frames: int
    height: int
    width: int
    channels: int
    classes: int
    filters: tuple[int, ...] = (16, 32, 64)
    kernel: int = 3
    dense: int = 64
    lstm: int = 64
    gaps: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        filters: tuple[int, ...] = filters,
        kernel: int = kernel,
        dense: int = dense,
        lstm: int = lstm,
    ) -> Self:
        """Return the network for a task."""
        sizes = (task.frames, task.height, task.width, task.channels, len(task.classes))
        return cls(*sizes, filters, kernel, dense, lstm, task.gaps)

    def misfit(self, task: Task) -> str | None:
        """Return in one line why this network is not for data of a task, or None if it is.

        Data without labels can be predicted by a network of any classes.
        """
        same = all(getattr(self, name) == getattr(task, name) for name in _SHAPE)
        if same and len(task.classes) in {0, self.classes}:
            return None
        return f"the network is for {_shape(self)}, {self.classes} classes; the data are {task}"

    def __post_init__(self) -> None:
        """Refuse a network that cannot be built."""
        object.__setattr__(self, "filters", tuple(self.filters))
        sizes = (self.frames, self.channels, self.kernel, self.dense, self.lstm, *self.filters)
        if any(not isinstance(size, int) or size < 1 for size in sizes) or self.classes < 2:
            raise ConfigError(f"a network needs sizes of at least 1 and two classes, got {self}")
        if type(self.gaps) is not bool:  # a network comes as JSON from another machine
            raise ConfigError(f"a network has gaps or not, true or false, got {self.gaps!r:.40}")
        if min(self.height, self.width) >> len(self.filters) < 1:
            raise ConfigError(
                f"images of {self.height} x {self.width} are too small for {len(self.filters)} poolings: "
                "use larger images or fewer filters"
            )

    def weights(self) -> tuple[WeightSpec, ...]:
        """Return the weights in the order in which Keras lists them for the built model."""
        specs: list[WeightSpec] = []
        channels = self.channels
        for block, filters in enumerate(self.filters):
            shape = (self.kernel, self.kernel, channels, filters)
            specs.append(WeightSpec(f"conv{block}/kernel", shape, "glorot_uniform"))
            specs.append(WeightSpec(f"conv{block}/bias", (filters,), "zeros"))
            channels = filters
        poolings = len(self.filters)
        features = (self.height >> poolings) * (self.width >> poolings) * channels
        specs.append(WeightSpec("dense/kernel", (features, self.dense), "glorot_uniform"))
        specs.append(WeightSpec("dense/bias", (self.dense,), "zeros"))
        inputs = self.dense + self.gaps
        for direction in ("forward", "backward"):
            specs.append(WeightSpec(f"{direction}/kernel", (inputs, 4 * self.lstm), "glorot_uniform"))
            specs.append(WeightSpec(f"{direction}/recurrent", (self.lstm, 4 * self.lstm), "orthogonal"))
            specs.append(WeightSpec(f"{direction}/bias", (4 * self.lstm,), "unit_forget_bias"))
        specs.append(WeightSpec("logits/kernel", (2 * self.lstm, self.classes), "glorot_uniform"))
        specs.append(WeightSpec("logits/bias", (self.classes,), "zeros"))
        return tuple(specs)

    def parameters(self) -> int:
        """Count the plaintext parameters."""
        return sum(prod(spec.shape) for spec in self.weights())

    def to_json(self) -> str:
        """Return the one JSON text of this network."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; raise `ConfigError` for anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"not a network specification: {error}") from error


_SHAPE = ("frames", "height", "width", "channels", "gaps")


def _shape(of: Task | NetworkSpec) -> str:
    times = "with" if of.gaps else "without"
    return f"{of.frames} frames of {of.height} x {of.width} x {of.channels}, {times} time gaps"


@dataclass(frozen=True)
class RunConfig:
    """What the coordinator is told about one run."""

    domain: str  # fingerprint of the key domain whose sites are admitted
    out: str  # folder for the federation's results
    sites: int  # how many sites to wait for
    rounds: int
    epochs: int  # local epochs a round
    batch_size: int
    learning_rate: float
    seed: int
    dtype: Dtype
    filters: str  # comma-separated, since Flower's run configuration has no lists
    kernel: int
    dense: int
    lstm: int
    wait_seconds: float  # how long to wait for enough sites to connect
    reply_seconds: float  # how long to wait for a site's reply, a round of training included

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least = {"sites": 1, "rounds": 1, "epochs": 1, "batch_size": 1, "seed": 0, "kernel": 1, "dense": 1, "lstm": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be at least {lowest}, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "wait_seconds", "reply_seconds"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be positive and finite, got {getattr(self, name)}"
                )
        if self.dtype not in DTYPES:
            raise ConfigError(f"run setting dtype must be float32 or float64, got {self.dtype!r}")
        if min(self.filter_sizes()) < 1:
            raise ConfigError(f"run setting filters must be at least 1 each, got {self.filters!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read Flower's run configuration (names with hyphens); reject unknown, missing and mistyped names."""
        return cls(**_typed(cls, values, "run setting"))

    def filter_sizes(self) -> tuple[int, ...]:
        """Return `filters` as numbers."""
        try:
            return tuple(int(size) for size in self.filters.split(","))
        except ValueError:
            raise ConfigError(f"run setting filters must be numbers like '16,32,64', got {self.filters!r}") from None


@dataclass(frozen=True)
class SiteConfig:
    """What a site's trainer is told: its public name, and three addresses inside its own hospital."""

    name: str
    dataset: Path  # folder of the encrypted dataset
    evaluation_key: Path
    vault: str  # gRPC address of the site's vault, such as unix:/run/fedpp/vault.sock

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read Flower's node configuration or a site file; reject unknown, missing and mistyped names."""
        typed = _typed(cls, values, "site setting")
        return cls(typed["name"], Path(typed["dataset"]), Path(typed["evaluation_key"]), typed["vault"])

    def to_mapping(self) -> dict[str, str]:
        """Return what `from_mapping` reads."""
        return {name.replace("_", "-"): str(value) for name, value in asdict(self).items()}


def to_toml(values: Mapping[str, str | int | float]) -> str:
    """Return settings as TOML, which keeps spaces and quotes that Flower's `key=value` would lose."""
    # A JSON string without escaped surrogates is a TOML string, but for DEL, which TOML wants escaped.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    return "".join(lines).replace("\x7f", "\\u007f")


# What Flower's run and node configurations may hold, per annotated type.
_ACCEPTED: dict[object, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), Path: (str,)}


def _typed(cls: type, values: Mapping[str, object], what: str) -> dict[str, Any]:
    known = {field.name.replace("_", "-"): field for field in fields(cls)}
    unknown = sorted(set(values) - set(known))
    missing = sorted(set(known) - set(values))
    if unknown or missing:
        wrong = [f"unknown {name}" for name in unknown] + [f"missing {name}" for name in missing]
        raise ConfigError(f"{what}s do not fit: {', '.join(wrong)}; known are {', '.join(sorted(known))}")
    typed = {}
    for name, field in known.items():
        accepted = _ACCEPTED.get(field.type, (str,))
        value = values[name]
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise ConfigError(f"{what} {name} must be {accepted[-1].__name__}, got {value!r}")
        typed[field.name] = value
    return typed
