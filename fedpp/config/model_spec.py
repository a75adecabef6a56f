"""What a federation asks of its sequences, and the network that answers; both twins are built from it."""

import json
from dataclasses import asdict, dataclass
from math import prod
from typing import Literal, Protocol, Self, get_args

from fedpp.errors import ConfigError

Gaps = Literal["none", "public", "encrypted"]  # whether a dataset keeps the time between frames, and how
Architecture = Literal["cnn", "cnn-lstm", "cnn-bi-lstm"]
Initializer = Literal["glorot_uniform", "orthogonal", "zeros", "unit_forget_bias"]

GAPS: tuple[Gaps, ...] = get_args(Gaps)
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
MAX_PARAMETERS = 50_000_000  # of a network that a site builds, or a vault draws weights for


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
class ModelSpec:
    """One of the three networks of a task; both twins, plaintext and encrypted, are built from it.

    A sequence is `[frames, height, width, channels]`. Each entry of `filters` is a block of a convolution
    (`kernel` x `kernel`, same padding), 2 x 2 max pooling and ReLU; then comes a dense layer of `dense` units a frame,
    and, but in the CNN alone, an LSTM of `lstm` units in one direction or in two. With `gaps` the time since the frame
    before is one more feature of each frame.

    In the frame form, whose frames are mixed in patches, the first block is a convolution over `kernel` x `kernel`
    patches and ReLU, of four times its filters and without pooling: a patch takes its place.

    A linear layer of `classes` logits ends it: on the LSTM's last state, or in the CNN on the frames' mean. With
    `voting` every frame is scored and votes instead (`fedpp.learning.layers.voting`). With `multi_label` each class
    is a
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
        images = (self.frames, self.height, self.width, self.channels)
        sizes = (*images, self.classes, self.kernel, self.dense, self.lstm, *self.filters)
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


def _shape(of: Task | ModelSpec) -> str:
    times = "with" if of.gaps else "without"
    patches = f" in patches of {of.patch} x {of.patch}" if of.patch else ""
    return f"{of.frames} frames of {of.height} x {of.width} x {of.channels}{patches}, {times} time gaps"


def _outputs(count: int, *, multi_label: bool) -> str:
    return f"{count} findings" if multi_label else f"{count} classes"


def _linear(name: str, kernel: tuple[int, ...]) -> list[WeightSpec]:
    return [WeightSpec(f"{name}/kernel", kernel, "glorot_uniform"), WeightSpec(f"{name}/bias", kernel[-1:], "zeros")]
