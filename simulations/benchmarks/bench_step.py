"""Benchmark of a training step on ciphertext against plaintext: three networks, two image sizes, time and memory.

The plaintext reference is an efficient one: frames folded into the batch, stock Keras layers, a loss and an optimizer
at least as fast as Keras's own `fit`. Steps take turns in one process; a ratio is the median over neighbouring turns,
and the ratio of processor times is the least disturbed by other programs. Memory is that of processes of their own,
which take a few steps each.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from fedpp.cipher.components import Algebra
from fedpp.config.model_spec import Architecture, ModelChoices, ModelSpec
from fedpp.config.task import Task
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.frame_cipher import DEFAULT_PATCH, FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.losses import CategoricalCrossentropy
from fedpp.learning.optimizers import Adam

from .block_form import BlockForm
from .measuring import Seconds, in_own_process, in_turns, median_ratio, memory_bytes, result

Form = Literal["ciphertext", "plaintext", "more_frame", "block_form", "keras"]
MEGABYTE = 1e6
WARM_UP, MEMORY_STEPS = 3, 4
SECRET = bytes(32)


@dataclass(frozen=True)
class Case:
    """Case of the benchmark: a network, the side of its images in pixels, and the sequences of a step."""

    architecture: Architecture
    side: int
    batch: int
    frames: int = 4

    def __str__(self) -> str:
        return f"{self.architecture}, {self.side}x{self.side}, {self.frames} frames, batch {self.batch}"

    def network(self) -> ModelSpec:
        """Return the network with its default layer sizes."""
        task = Task(self.frames, self.side, self.side, 1, ("no", "yes"))
        return ModelSpec(task, ModelChoices(self.architecture))


CASES = tuple(Case(a, side, batch) for side, batch in ((64, 16), (128, 8)) for a in get_args(Architecture))


def step(cases: Sequence[Case] = CASES, *, repetitions: int = 25) -> dict[str, Any]:
    """Measure training steps on ciphertext and on plaintext, in other forms, and in Keras's own `fit`.

    The block form is timed for the network without an LSTM. Keras's own model, loss, Adam and `fit` with stock layers
    show that the plaintext reference is not slow.
    """
    rows = [{"case": str(case), **_times(case, repetitions), **_memory(case)} for case in cases]
    return result("step", rows, ("fedpp", "tensorflow", "keras", "numpy"))


def _times(case: Case, repetitions: int) -> dict[str, float]:
    seconds = _steps(case, ["ciphertext", "plaintext", "more_frame"], repetitions)
    fits = {form: _fit(case, form, repetitions) for form in ("plaintext", "keras")}
    of_fits = in_turns(fits, 3)
    row = {
        "ciphertext_ms": 1e3 * median(seconds["ciphertext"].wall),
        "plaintext_ms": 1e3 * median(seconds["plaintext"].wall),
        "ratio": median_ratio(seconds["ciphertext"].wall, seconds["plaintext"].wall),
        "processor_ratio": median_ratio(seconds["ciphertext"].processor, seconds["plaintext"].processor),
        "more_frame_ratio": median_ratio(seconds["more_frame"].wall, seconds["plaintext"].wall),
        "plaintext_to_keras_fit": median_ratio(of_fits["plaintext"].wall, of_fits["keras"].wall),
    }
    if case.architecture == "cnn":
        seconds = _steps(case, ["block_form", "plaintext"], -(-repetitions // 5))
        block, plain = seconds["block_form"], seconds["plaintext"]
        row["block_form_ratio"] = median_ratio(block.wall, plain.wall)
        row["block_form_processor_ratio"] = median_ratio(block.processor, plain.processor)
    return row


def _steps(case: Case, forms: Sequence[Form], repetitions: int) -> dict[Form, Seconds]:
    steps = {form: prepared(case, form) for form in forms}
    return in_turns(steps, repetitions, warm_up=WARM_UP, label=str(case))


def _fit(case: Case, form: Form, steps: int) -> Callable[[], object]:
    model, inputs, labels = _compiled(case, form)
    data = tf.data.Dataset.from_tensors((inputs, labels)).repeat(steps)
    return lambda: model.fit(data, shuffle=False, verbose=0)


def prepared(case: Case, form: Form) -> Callable[[], object]:
    """Return the training step of a network of this form, with its data."""
    model, inputs, labels = _compiled(case, form)
    return lambda: model.train_on_batch(inputs, labels)


def _compiled(case: Case, form: Form) -> tuple[keras.Model, tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return a compiled network, its inputs (frames, and which are valid), and labels."""
    network, generator = case.network(), np.random.default_rng(0)
    frames = generator.normal(size=(case.batch, case.frames, case.side, case.side, 1)).astype(np.float32)
    numbers = generator.integers(2, size=case.batch)
    labels = np.eye(2, dtype=np.float32)[numbers]
    domain = KeyDomain.of_secret(SECRET, n=2)
    algebra = {"ciphertext": domain.evaluation_key().algebra(), "block_form": BlockForm(domain.matrix())}.get(
        form, Algebra.plaintext()
    )
    if algebra.n == 1:
        model = models.plaintext(network, "float32")
        model.set_weights(list(initial_weights(network, 0).values()))
    else:
        model = models.encrypted(network, algebra, "float32")
        cipher = SequenceCipher(domain, "float32")
        frames = cipher.frames("batch", frames)
        labels = np.stack([cipher.label(str(i), int(number), 2) for i, number in enumerate(numbers)])
        weights = encrypted_initial_weights(network, 0, domain.evaluation_key())
        if isinstance(algebra, BlockForm):
            frames, labels = algebra.encrypt(frames), algebra.encrypt(labels)
            weights = {name: algebra.encrypt(rows) for name, rows in weights.items()}
        models.set_rows(model, network, algebra, weights)
    if form == "more_frame":
        mixer = FrameCipher(KeyDomain.of_secret(SECRET, n=1, scheme="more-frame"), "float32", "patches", DEFAULT_PATCH)
        frames = np.stack([mixer.frames("", sequence)[..., 0] for sequence in frames])
    if form == "keras":
        model = keras.Model(model.inputs, model.outputs)
        model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
    else:
        model.compile(Adam(algebra), CategoricalCrossentropy(algebra, "float32"), jit_compile=False)
    valid = tf.ones((case.batch, case.frames), tf.bool)
    return model, (tf.constant(frames, tf.float32), valid), tf.constant(labels, tf.float32)


def _memory(case: Case) -> dict[str, float]:
    """Return the peaks of two processes that take a few steps each, and their ratios.

    Most of a small one is TensorFlow itself; so the second ratio is of the growth since TensorFlow was loaded.
    """
    loaded, ours = _peak(case, "ciphertext")
    without, theirs = _peak(case, "plaintext")
    return {
        "ciphertext_mb": ours,
        "plaintext_mb": theirs,
        "memory_ratio": ours / theirs,
        "memory_growth_ratio": (ours - loaded) / (theirs - without),
    }


def _peak(case: Case, form: Form) -> tuple[float, float]:
    """Return the memory of a new process after its imports and its peak after a few steps, in MB of 10^6 bytes."""
    loaded, peak = in_own_process("bench_step", form, json.dumps(asdict(case)))
    return loaded / MEGABYTE, peak / MEGABYTE


def _measure_memory(form: Form, case: Case) -> None:
    loaded = memory_bytes("VmRSS")
    action = prepared(case, form)
    for _ in range(MEMORY_STEPS):
        action()
    print(json.dumps([loaded, memory_bytes("VmHWM")]))


if __name__ == "__main__":
    _measure_memory(sys.argv[1], Case(**json.loads(sys.argv[2])))  # type: ignore[arg-type]
