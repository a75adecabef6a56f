"""Model specification: the network of a task, from which the plaintext and the encrypted model are built."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal, get_args

from fedpp.config.task import Task
from fedpp.errors import ConfigError
from fedpp.values import Declared, Flat, Listed, whole

Architecture = Literal["cnn", "cnn-lstm", "cnn-bi-lstm"]
Initializer = Literal["glorot_uniform", "orthogonal", "zeros", "unit_forget_bias"]

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
MAX_PARAMETERS = 50_000_000  # of a network that a site builds, or a vault draws weights for


@dataclass(frozen=True)
class WeightSpec:
    """One weight of a network: its name, plaintext shape, and how Keras would initialise it."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer


@dataclass(frozen=True)
class ModelChoices(Declared, label="model"):
    """What a network's user chooses, whatever its task."""

    architecture: Annotated[Architecture, "layers after those of the frames"] = "cnn-bi-lstm"
    voting: Annotated[bool, "every frame is scored and votes, in place of the LSTM's last state alone"] = False
    filters: Annotated[
        tuple[Annotated[int, whole(1)], ...], Listed(least=1), "filters of the convolutions, one after another"
    ] = (16, 32, 64)
    kernel: Annotated[int, whole(1), "width of the convolutions"] = 3
    dense: Annotated[int, whole(1), "units of a frame's features"] = 64
    lstm: Annotated[int, whole(1), "units of each direction"] = 64


@dataclass(frozen=True)
class ModelSpec(Declared, label="network"):
    """One of the three networks of a task; the plaintext and the encrypted model are built from it.

    A sequence is `[frames, height, width, channels]`. Each entry of `filters` is a block of a convolution
    (`kernel` x `kernel`, same padding), 2 x 2 max pooling and ReLU; then comes a dense layer of `dense` units a frame,
    and, but in the CNN alone, an LSTM of `lstm` units in one direction or in two. With `gaps` the time since the frame
    before is one more feature of each frame.

    With orthogonal frame mixing, whose frames are mixed in patches, the first block is a convolution over `kernel` x
    `kernel` patches and ReLU, of four times its filters and without pooling: a patch takes its place.

    A linear layer of one logit a class ends it: on the LSTM's last state, or in the CNN on the frames' mean. With
    `voting` every frame is scored and votes instead (`fedpp.learning.layers.voting`). With `multi_label` each class is
    a finding of its own, whose logit is that of its presence.
    """

    task: Annotated[Task, Flat()]
    choices: Annotated[ModelChoices, Flat()] = ModelChoices()

    def misfit(self, task: Task) -> str | None:
        """Return in one line why this network is not for data of a task, or None if it is.

        Data without labels can be predicted by a network of any classes.
        """
        labels = {"classes": self.task.classes, "multi_label": self.task.multi_label}
        fits = task == self.task or (not task.classes and task.changed(**labels) == self.task)
        return None if fits else f"the network is for {self.task}; the data are {task}"

    def __post_init__(self) -> None:
        """Refuse a network that cannot be built."""
        super().__post_init__()
        task, filters = self.task, self.choices.filters
        if len(task.classes) < (1 if task.multi_label else 2):
            raise ConfigError(f"a network needs two classes, or one finding, got {len(task.classes)}: label the data")
        if task.patch and (task.height % task.patch or task.width % task.patch):
            raise ConfigError(f"images of {task.height} x {task.width} are not made of patches of {task.patch}")
        if task.patch and not self.choices.kernel % 2:
            raise ConfigError(f"a kernel over patches has an odd size, got {self.choices.kernel}")
        poolings = len(filters) - bool(task.patch)
        if min(task.height, task.width) // (task.patch or 1) >> poolings < 1:
            raise ConfigError(
                f"images of {task.height} x {task.width} are too small for {poolings} poolings: "
                "use larger images or fewer filters"
            )

    def weights(self) -> tuple[WeightSpec, ...]:
        """Return the weights in the order in which Keras lists them for the built model."""
        specs: list[WeightSpec] = []
        task, of, outputs = self.task, self.choices, len(self.task.classes)
        channels, blocks = task.channels, list(enumerate(of.filters))
        if task.patch:
            blocks = blocks[1:]
            shape = (of.kernel, of.kernel, task.patch**2 * channels, self.stem)
            specs += _linear("stem", shape)
            channels = self.stem
        for block, filters in blocks:
            specs += _linear(f"conv{block}", (of.kernel, of.kernel, channels, filters))
            channels = filters
        height, width = (side // (task.patch or 1) >> len(blocks) for side in (task.height, task.width))
        features = height * width * channels
        specs += _linear("dense", (features, of.dense))
        inputs = of.dense + task.gaps
        for direction in self.directions:
            specs.append(WeightSpec(f"{direction}/kernel", (inputs, 4 * of.lstm), "glorot_uniform"))
            specs.append(WeightSpec(f"{direction}/recurrent", (of.lstm, 4 * of.lstm), "orthogonal"))
            specs.append(WeightSpec(f"{direction}/bias", (4 * of.lstm,), "unit_forget_bias"))
        states = of.lstm * len(self.directions)
        if not of.voting:
            return (*specs, *_linear("logits", (states or inputs, outputs)))
        specs += _linear("spatial", (inputs, outputs))
        if states:
            specs += _linear("temporal", (states, outputs))
            specs.append(WeightSpec("mix", (1,), "zeros"))
        return (*specs, WeightSpec("attention", (inputs + states, 1), "glorot_uniform"))

    @property
    def stem(self) -> int:
        """Return the number of filters of the first convolution over mixed patches."""
        return 4 * self.choices.filters[0]

    @property
    def directions(self) -> tuple[str, ...]:
        """Return the names of the LSTM's directions; none in the CNN alone."""
        return {"cnn": (), "cnn-lstm": ("forward",), "cnn-bi-lstm": ("forward", "backward")}[self.choices.architecture]

    def parameters(self) -> int:
        """Count the plaintext parameters."""
        return sum(prod(spec.shape) for spec in self.weights())


def _linear(name: str, kernel: tuple[int, ...]) -> list[WeightSpec]:
    return [WeightSpec(f"{name}/kernel", kernel, "glorot_uniform"), WeightSpec(f"{name}/bias", kernel[-1:], "zeros")]
