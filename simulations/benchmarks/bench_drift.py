"""Benchmark of rounding: the drift of training on ciphertext from its plaintext reference over 2,000 steps.

Training is chaotic: each rounding error grows with the steps, on plaintext too. Therefore the ciphertext is compared
with controls: the plaintext reference with its initial weights moved by one unit in the last place, and by eight
(a product on ciphertext rounds several times, one on plaintext once). A second optimizer keeps Adam's moments as rows,
where the rounding of the message's moments depends on the decoys'.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra, Slots, Tensor
from fedpp.config.hyperparameters import Dtype, Hyperparameters
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.task import Task
from fedpp.imaging.account import read_accounted
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import pad, prepare
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner
from fedpp.learning.metrics import softmax
from fedpp.learning.optimizers import Adam
from fedpp.reporting import charts
from simulations.phantom import write_phantom
from simulations.plaintext_reference import moved

from .measuring import result, show_progress

CHECKPOINTS = (1, 10, 25, 100, 200, 500, 1000, 2000)
DRAWS: dict[Dtype, int] = {"float32": 5, "float64": 1}  # of each control
CONTROLS = {"control": 1, "control_of_8": 8}  # units in the last place
PATIENTS, FRAMES, SIDE = 48, 4, 16
HYPERPARAMETERS = Hyperparameters(learning_rate=1e-3, batch_size=8)
CHART = "drift.png"

Values = NDArray[np.floating]


class RowMoments(Adam):
    """Adam with its moments as rows, for comparison."""

    def steps(self, gradients: Slots, first: int, rate: Tensor) -> Slots:
        """Return the steps of all slots; a second moment that rounding made negative counts as zero."""
        slots = []
        squares = tuple(g * g for g in gradients)
        for name, beta, news in (("momentum", self.beta_1, gradients), ("velocity", self.beta_2, squares)):
            kept = [self.moment(name, first + k) for k in range(self.algebra.n)]
            share = ops.convert_to_tensor(1.0 - beta, kept[0].dtype)
            for row, new in zip(kept, self.algebra.to_rows(self.algebra.from_slots(news)), strict=True):
                row.assign(row - share * row + share * new)
            slots.append(self.algebra.to_slots(self.algebra.from_rows(ops.stack(kept, axis=-1))))
        return tuple(rate * m / (ops.sqrt(ops.maximum(v, 0.0)) + self.epsilon) for m, v in zip(*slots, strict=True))


@dataclass(frozen=True)
class Data:
    """Prepared sequences `[k, frames, side, side, 1]` and class numbers `[k]`; the first `training` are trained on."""

    frames: Values
    labels: NDArray[np.int64]
    classes: int
    training: int

    def network(self) -> ModelSpec:
        """Return the network, a small one."""
        task = Task(FRAMES, SIDE, SIDE, 1, tuple(map(str, range(self.classes))))
        return ModelSpec(task, ModelChoices(filters=(8, 16), dense=16, lstm=16))


@dataclass(frozen=True)
class State:
    """Decrypted state of a training at one step: all weights in one vector, training loss, validation probabilities."""

    weights: Values
    loss: float
    probabilities: Values

    def distance(self, other: "State") -> dict[str, float]:
        """Return the largest differences."""
        return {
            "weights": float(np.abs(self.weights - other.weights).max()),
            "loss": abs(self.loss - other.loss),
            "probabilities": float(np.abs(self.probabilities - other.probabilities).max()),
        }


def drift(
    out: Path | None = None,
    data: Path | None = None,
    *,
    checkpoints: Sequence[int] = CHECKPOINTS,
    draws: Mapping[Dtype, int] = DRAWS,
) -> dict[str, Any]:
    """Measure on phantom images, or on the labelled images in `data`; write a chart into the folder `out`, if given."""
    task = _read(data)
    rows = [row for dtype in draws for row in _rows(task, dtype, checkpoints, draws[dtype])]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        chart(rows, out / CHART)
    return result("drift", rows, ("fedpp", "tensorflow", "keras", "numpy"))


def _read(folder: Path | None) -> Data:
    with tempfile.TemporaryDirectory(prefix="fedpp-bench-") as scratch:
        if folder is None:
            (folder,) = write_phantom(Path(scratch), hospitals=1, patients=PATIENTS, visits=FRAMES, size=64, seed=0)
        sequences, _ = read_accounted(folder)
        classes = ClassMap(tuple(sorted({str(s.label) for s in sequences})))
        frames = np.stack([pad(prepare(s, FRAMES, SIDE, SIDE), FRAMES) for s in sequences])
        labels = np.array([classes.number(s.label) for s in sequences])
    order = np.random.default_rng(0).permutation(len(labels))
    return Data(frames[order], labels[order], len(classes.classes), len(labels) * 3 // 4)


def _rows(data: Data, dtype: Dtype, checkpoints: Sequence[int], draws: int) -> list[dict[str, Any]]:
    initial = [w.astype(dtype) for w in initial_weights(data.network(), 0).values()]
    plain = Learner(data.network(), Algebra.plaintext(), HYPERPARAMETERS, dtype)  # for all: tracing takes seconds
    reference = list(_plaintext(data, plain, initial, checkpoints))
    others = {
        "": [list(_encrypted(data, dtype, checkpoints))],
        "_moments_by_rows": [list(_encrypted(data, dtype, checkpoints, RowMoments))],
    }
    for name, units in CONTROLS.items():
        starts = [moved(initial, seed, units) for seed in range(draws)]
        others[f"_{name}"] = [list(_plaintext(data, plain, start, checkpoints)) for start in starts]
    rows = []
    for i, (step, state) in enumerate(zip(checkpoints, reference, strict=True)):
        row: dict[str, Any] = {"case": f"{dtype}, step {step}", "reference_loss": state.loss}
        for what in ("weights", "loss", "probabilities"):
            row |= {f"{what}{name}": max(o[i].distance(state)[what] for o in other) for name, other in others.items()}
        rows.append(row)
    return rows


def _plaintext(data: Data, learner: Learner, initial: Sequence[Values], checkpoints: Sequence[int]) -> Iterator[State]:
    learner.model.set_weights(initial)
    learner.model.optimizer.restart()
    labels = np.eye(data.classes, dtype=learner.dtype)[data.labels]
    yield from _states(data, learner, data.frames.astype(learner.dtype), labels, checkpoints)


def _encrypted(
    data: Data, dtype: Dtype, checkpoints: Sequence[int], optimizer: type[Adam] | None = None
) -> Iterator[State]:
    domain = KeyDomain.of_secret(bytes(32), n=2)
    key = domain.evaluation_key()
    cipher = SequenceCipher(domain, dtype)
    frames = np.stack([cipher.frames(str(i), values) for i, values in enumerate(data.frames)])
    labels = np.stack([cipher.label(str(i), int(k), data.classes) for i, k in enumerate(data.labels)])
    learner = Learner(data.network(), key.algebra(), HYPERPARAMETERS, dtype)
    if optimizer is not None:
        learner.model.compile(
            optimizer(key.algebra(), HYPERPARAMETERS.learning_rate), learner.model.loss, jit_compile=False
        )
    models.set_rows(learner.model, data.network(), key.algebra(), encrypted_initial_weights(data.network(), 0, key))
    yield from _states(data, learner, frames, labels, checkpoints)


def _states(
    data: Data, learner: Learner, frames: Values, labels: Values, checkpoints: Sequence[int]
) -> Iterator[State]:
    """Train, and yield the state at each checkpoint; all trainings get the same batches."""
    learner.model.optimizer.build(learner.model.trainable_variables)  # now, or the first step is traced twice
    valid = np.ones((len(frames), FRAMES), bool)
    batches = _batches(data.training)
    for step in range(1, checkpoints[-1] + 1):
        batch = next(batches)
        inputs = [tf.constant(values[batch]) for values in (frames, valid)]  # arrays would be cast to float32
        learner.model.train_on_batch(inputs, tf.constant(labels[batch]))
        if step in checkpoints:
            logits = learner.predict([lambda i: frames[i], lambda i: valid[i]], np.arange(len(frames)))
            yield _state(data, learner, logits.astype(np.float64))
        show_progress(f"{learner.dtype}, n = {learner.algebra.n}: step {step} of {checkpoints[-1]}")


def _batches(count: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(1)
    while True:
        order = generator.permutation(count)
        for start in range(0, count - HYPERPARAMETERS.batch_size + 1, HYPERPARAMETERS.batch_size):
            yield order[start : start + HYPERPARAMETERS.batch_size]


def _state(data: Data, learner: Learner, logits: Values) -> State:
    of, n = learner.algebra, learner.algebra.n
    parts = [w.astype(np.float64) for w in learner.model.get_weights()]
    weights = [of.to_slots(tuple(parts[i : i + n]))[0] for i in range(0, len(parts), n)]
    probabilities = softmax(logits if n == 1 else of.to_slots(of.from_rows(logits))[0])
    trained = np.arange(data.training)
    loss = -np.mean(np.log(probabilities[trained, data.labels[trained]]))
    return State(np.concatenate([w.reshape(-1) for w in weights]), float(loss), probabilities[data.training :])


def chart(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the differences of probabilities by step, one panel a dtype."""
    from matplotlib.figure import Figure

    labels = {"": "ciphertext", "_moments_by_rows": "ciphertext, moments as rows"}
    labels |= {f"_{name}": f"plaintext moved by {units} in the last place" for name, units in CONTROLS.items()}
    with charts.png_style():
        figure = Figure(figsize=(9.0, 4.4), layout="constrained")
        for axes, dtype in zip(figure.subplots(1, len(DRAWS)), DRAWS, strict=True):
            of_dtype = [row for row in rows if row["case"].startswith(dtype)]
            steps = [int(row["case"].split()[-1]) for row in of_dtype]
            for colour, (suffix, label) in zip(charts.SERIES, labels.items(), strict=True):
                values = [max(row[f"probabilities{suffix}"], np.finfo(dtype).eps / 8) for row in of_dtype]
                axes.loglog(steps, values, marker="o", markersize=4, color=charts.PNG_COLOURS[colour], label=label)
            axes.set_title(dtype)
            axes.set_xlabel("steps")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(lambda *_: "")
        figure.axes[0].set_ylabel("largest difference of a probability")
        lines, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False)
        path.write_bytes(charts.png(figure))
