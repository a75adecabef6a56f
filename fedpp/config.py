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
from fedpp.recipe import Recipe

Dtype = Literal["float32", "float64"]
Gaps = Literal["none", "public", "encrypted"]  # whether a dataset keeps the time between frames, and how
Head = Literal["state", "vote"]
Architecture = Literal["cnn", "cnn-lstm", "cnn-bi-lstm"]
Initializer = Literal["glorot_uniform", "orthogonal", "zeros", "unit_forget_bias"]

DTYPES: tuple[Dtype, ...] = ("float32", "float64")
GAPS: tuple[Gaps, ...] = get_args(Gaps)
HEADS: tuple[Head, ...] = get_args(Head)
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
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
    @property
    def multi_label(self) -> bool: ...  # noqa: D102
    @property
    def patch(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Task:
    """What all sites of a federation share and a network must fit: the sequences, and what is asked of them."""

    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]  # none for data without labels; the findings of multi-label data
    gaps: bool  # whether the time between frames is an input; public or encrypted, the network is the same
    multi_label: bool = False  # each class is a finding of its own, present or absent, and any number may be present
    patch: int = 0  # in the frame form, the side of the patches that are mixed; 0: pixels stand by themselves

    @classmethod
    def of(cls, data: Described) -> Self:
        """Return the task that these data are for."""
        gaps = data.gaps != "none"
        sizes = (data.frames, data.height, data.width, data.channels)
        return cls(*sizes, tuple(data.classes), gaps, data.multi_label, data.patch)

    def __str__(self) -> str:
        names = f" ({', '.join(self.classes)})" if self.classes else ""
        return f"{_shape(self)}, {_outputs(len(self.classes), multi_label=self.multi_label)}{names}"


@dataclass(frozen=True)
class NetworkSpec:
    """One of the three networks of a task; both twins, plaintext and encrypted, are built from it.

    A sequence is `[frames, height, width, channels]`. Each entry of `filters` is a block of a convolution
    (`kernel` x `kernel`, same padding), 2 x 2 max pooling and ReLU; then comes a dense layer of `dense` units a frame,
    and, but in the CNN alone, an LSTM of `lstm` units in one direction or in two. With `gaps` the time since the frame
    before is one more feature of each frame.

    In the frame form, whose frames are mixed in patches, the first block is a convolution over `kernel` x `kernel`
    patches and ReLU, of four times its filters and without pooling: a patch takes its place.

    A linear layer of `classes` logits ends it: on the LSTM's last state, or in the CNN on the frames' mean. With
    `voting` every frame is scored and votes instead (`fedpp.learning.voting`). With `multi_label` each class is a
    finding of its own, whose logit is that of its presence.
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
    architecture: Architecture = "cnn-bi-lstm"
    voting: bool = False
    multi_label: bool = False
    patch: int = 0

    @classmethod
    def of(
        cls,
        task: Task,
        filters: tuple[int, ...] = filters,
        kernel: int = kernel,
        dense: int = dense,
        lstm: int = lstm,
        *,
        architecture: Architecture = architecture,
        voting: bool = voting,
    ) -> Self:
        """Return the network for a task."""
        sizes = (task.frames, task.height, task.width, task.channels, len(task.classes))
        return cls(
            *sizes,
            filters,
            kernel,
            dense,
            lstm,
            gaps=task.gaps,
            architecture=architecture,
            voting=voting,
            multi_label=task.multi_label,
            patch=task.patch,
        )

    def misfit(self, task: Task) -> str | None:
        """Return in one line why this network is not for data of a task, or None if it is.

        Data without labels can be predicted by a network of any classes.
        """
        same = all(getattr(self, name) == getattr(task, name) for name in _SHAPE)
        if same and (not task.classes or (len(task.classes), task.multi_label) == (self.classes, self.multi_label)):
            return None
        outputs = _outputs(self.classes, multi_label=self.multi_label)
        return f"the network is for {_shape(self)}, {outputs}; the data are {task}"

    def __post_init__(self) -> None:
        """Refuse a network that cannot be built."""
        object.__setattr__(self, "filters", tuple(self.filters))
        sizes = (self.frames, self.channels, self.kernel, self.dense, self.lstm, *self.filters)
        least = 1 if self.multi_label else 2
        if any(type(size) is not int or size < 1 for size in sizes) or self.classes < least:
            raise ConfigError(f"a network needs sizes of at least 1 and two classes, or one finding, got {self}")
        for name in ("gaps", "voting", "multi_label"):  # a network comes as JSON from another machine
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"a network's {name} is true or false, got {getattr(self, name)!r:.40}")
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"a network's architecture is one of {', '.join(ARCHITECTURES)}, got {self.architecture!r:.40}"
            )
        if (
            type(self.patch) is not int
            or self.patch < 0
            or (self.patch and (self.height % self.patch or self.width % self.patch))
        ):
            raise ConfigError(f"images of {self.height} x {self.width} are not made of patches of {self.patch!r:.40}")
        if self.patch and not self.kernel % 2:
            raise ConfigError(f"a kernel over patches has an odd size, got {self.kernel}")
        poolings = len(self.filters) - bool(self.patch)
        if min(self.height, self.width) // (self.patch or 1) >> poolings < 1:
            raise ConfigError(
                f"images of {self.height} x {self.width} are too small for {poolings} poolings: "
                "use larger images or fewer filters"
            )

    def weights(self) -> tuple[WeightSpec, ...]:
        """Return the weights in the order in which Keras lists them for the built model."""
        specs: list[WeightSpec] = []
        channels, blocks = self.channels, list(enumerate(self.filters))
        if self.patch:
            blocks = blocks[1:]
            shape = (self.kernel, self.kernel, self.patch**2 * channels, self.stem)
            specs += _linear("stem", shape)
            channels = self.stem
        for block, filters in blocks:
            specs += _linear(f"conv{block}", (self.kernel, self.kernel, channels, filters))
            channels = filters
        height, width = (side // (self.patch or 1) >> len(blocks) for side in (self.height, self.width))
        features = height * width * channels
        specs += _linear("dense", (features, self.dense))
        inputs = self.dense + self.gaps
        for direction in self.directions:
            specs.append(WeightSpec(f"{direction}/kernel", (inputs, 4 * self.lstm), "glorot_uniform"))
            specs.append(WeightSpec(f"{direction}/recurrent", (self.lstm, 4 * self.lstm), "orthogonal"))
            specs.append(WeightSpec(f"{direction}/bias", (4 * self.lstm,), "unit_forget_bias"))
        states = self.lstm * len(self.directions)
        if not self.voting:
            return (*specs, *_linear("logits", (states or inputs, self.classes)))
        specs += _linear("spatial", (inputs, self.classes))
        if states:
            specs += _linear("temporal", (states, self.classes))
            specs.append(WeightSpec("mix", (1,), "zeros"))
        return (*specs, WeightSpec("attention", (inputs + states, 1), "glorot_uniform"))

    @property
    def stem(self) -> int:
        """Return the filters of the frame form's first convolution."""
        return 4 * self.filters[0]

    @property
    def directions(self) -> tuple[str, ...]:
        """Return the names of the LSTM's directions; none in the CNN alone."""
        return {"cnn": (), "cnn-lstm": ("forward",), "cnn-bi-lstm": ("forward", "backward")}[self.architecture]

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


_SHAPE = ("frames", "height", "width", "channels", "gaps", "patch")


def _shape(of: Task | NetworkSpec) -> str:
    times = "with" if of.gaps else "without"
    patches = f" in patches of {of.patch} x {of.patch}" if of.patch else ""
    return f"{of.frames} frames of {of.height} x {of.width} x {of.channels}{patches}, {times} time gaps"


def _outputs(count: int, *, multi_label: bool) -> str:
    return f"{count} findings" if multi_label else f"{count} classes"


def _linear(name: str, kernel: tuple[int, ...]) -> list[WeightSpec]:
    return [WeightSpec(f"{name}/kernel", kernel, "glorot_uniform"), WeightSpec(f"{name}/bias", kernel[-1:], "zeros")]


@dataclass(frozen=True)
class RunConfig:
    """What the coordinator is told about one run."""

    domain: str  # fingerprint of the key domain whose sites are admitted
    out: str  # folder for the federation's results
    sites: int  # how many sites to wait for
    rounds: int
    epochs: int  # local epochs a round
    batch_size: int
    micro_batch: int  # sequences of a batch in memory at a time
    learning_rate: float
    positive_weight: float  # of the loss of all classes but the first, or of a finding that is present
    label_smoothing: float
    seed: int
    dtype: Dtype
    architecture: Architecture
    head: Head  # what is scored: the LSTM's last state, or every frame, and the frames vote
    filters: str  # comma-separated, since Flower's run configuration has no lists
    kernel: int
    dense: int
    lstm: int
    wait_seconds: float  # how long to wait for enough sites to connect
    reply_seconds: float  # how long to wait for a site's reply, a round of training included

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least = {"sites": 1, "rounds": 1, "epochs": 1, "seed": 0, "kernel": 1, "dense": 1, "lstm": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be at least {lowest}, got {getattr(self, name)}"
                )
        for name in ("wait_seconds", "reply_seconds"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be positive and finite, got {getattr(self, name)}"
                )
        for name, known in (("dtype", DTYPES), ("architecture", ARCHITECTURES), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"run setting {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        self.recipe()
        if min(self.filter_sizes()) < 1:
            raise ConfigError(f"run setting filters must be at least 1 each, got {self.filters!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read Flower's run configuration (names with hyphens); reject unknown, missing and mistyped names."""
        return cls(**_typed(cls, values, "run setting"))

    def recipe(self) -> Recipe:
        """Return how the network learns."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})

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
