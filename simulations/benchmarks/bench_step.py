"""A training step on ciphertext against one on plaintext: the three networks, two sizes of image, time and memory.

The plaintext reference is an efficient one: frames folded into the batch, stock Keras layers, its losses and
optimizer at
least as fast as Keras's own `fit`. Times alternate in one process, a ratio is the median of those of neighbours, and
the ratio of processor times is what other programs on the machine disturb least. Memory is that of processes of their
own, which take a few steps each.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from fedpp.cipher.components import Algebra
from fedpp.config.model_spec import Architecture, ModelSpec
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.frame_cipher import DEFAULT_PATCH, FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.losses import CategoricalCrossentropy
from fedpp.learning.optimizers import Adam

from .block_form import BlockForm

Form = Literal["ciphertext", "plaintext", "more_frame", "block_form", "keras"]
MEGABYTE = 1e6
WARM_UP, MEMORY_STEPS = 3, 4
SECRET = bytes(32)


@dataclass(frozen=True)
class Case:
    """What is trained: a network, the side of its images, and how many sequences a step takes."""

    architecture: Architecture
    side: int
    batch: int
    frames: int = 4

    def __str__(self) -> str:
        return f"{self.architecture}, {self.side}x{self.side}, {self.frames} frames, batch {self.batch}"

    def network(self) -> ModelSpec:
        """Return the network in its default sizes."""
        return ModelSpec(self.frames, self.side, self.side, 1, 2, architecture=self.architecture)


CASES = tuple(Case(a, side, batch) for side, batch in ((64, 16), (128, 8)) for a in get_args(Architecture))


def step(cases: Sequence[Case] = CASES, *, repetitions: int = 25) -> dict[str, Any]:
    """Time training steps on ciphertext and on plaintext, and weigh them; show what other forms cost, and Keras.

    The block form is timed for the network without an LSTM. Keras's own model, loss, Adam and `fit` with stock layers
    show that the plaintext reference is not slow.
    """
    rows = [{"case": str(case), **_times(case, repetitions), **_memory(case)} for case in cases]
    return {
        "name": "step",
        "rows": rows,
        "versions": {name: version(name) for name in ("fedpp", "tensorflow", "keras", "numpy")},
    }


def _times(case: Case, repetitions: int) -> dict[str, float]:
    forms: list[Form] = ["ciphertext", "plaintext", "more_frame"]
    wall, processor = _alternating(case, forms, repetitions)
    row = {
        "ciphertext_ms": 1e3 * median(wall["ciphertext"]),
        "plaintext_ms": 1e3 * median(wall["plaintext"]),
        "ratio": _ratio(wall, "ciphertext"),
        "processor_ratio": _ratio(processor, "ciphertext"),
        "more_frame_ratio": _ratio(wall, "more_frame"),
        "plaintext_to_keras_fit": _against_fit(case, repetitions),
    }
    if case.architecture == "cnn":
        wall, processor = _alternating(case, ["block_form", "plaintext"], -(-repetitions // 5))
        row["block_form_ratio"] = _ratio(wall, "block_form")
        row["block_form_processor_ratio"] = _ratio(processor, "block_form")
    return row


def _ratio(seconds: dict[Form, list[float]], form: Form) -> float:
    return median(ours / theirs for ours, theirs in zip(seconds[form], seconds["plaintext"], strict=True))


def _alternating(
    case: Case, forms: Sequence[Form], repetitions: int
) -> tuple[dict[Form, list[float]], dict[Form, list[float]]]:
    """Return the times of each form's steps, by the clock and of the processor; one step of each form in turn."""
    steps = {form: prepared(case, form) for form in forms}
    wall: dict[Form, list[float]] = {form: [] for form in forms}
    processor: dict[Form, list[float]] = {form: [] for form in forms}
    for repetition in range(-WARM_UP, repetitions):
        for form, action in steps.items():
            began = time.perf_counter(), time.process_time()
            action()
            ended = time.perf_counter(), time.process_time()
            if repetition >= 0:
                wall[form].append(ended[0] - began[0])
                processor[form].append(ended[1] - began[1])
        _progress(f"{case}: {max(0, repetition + 1)} of {repetitions}")
    return wall, processor


def _against_fit(case: Case, repetitions: int) -> float:
    """Return the time of the twin's epochs as a multiple of that of Keras's own, in turn."""
    seconds: dict[str, list[float]] = {"plaintext": [], "keras": []}
    fits = {"plaintext": _fit(case, "plaintext", repetitions), "keras": _fit(case, "keras", repetitions)}
    for epoch in range(-1, 3):  # the first holds the tracing
        for form, fit in fits.items():
            began = time.perf_counter()
            fit()
            if epoch >= 0:
                seconds[form].append(time.perf_counter() - began)
    return median(ours / theirs for ours, theirs in zip(seconds["plaintext"], seconds["keras"], strict=True))


def _fit(case: Case, form: Form, steps: int) -> Callable[[], object]:
    model, inputs, labels = _compiled(case, form)
    data = tf.data.Dataset.from_tensors((inputs, labels)).repeat(steps)
    return lambda: model.fit(data, shuffle=False, verbose=0)


def prepared(case: Case, form: Form) -> Callable[[], object]:
    """Return the training step of a network of this form, with data, ready to be taken."""
    model, inputs, labels = _compiled(case, form)
    return lambda: model.train_on_batch(inputs, labels)


def _compiled(case: Case, form: Form) -> tuple[keras.Model, tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return a network, compiled, its inputs (frames, and which are valid), and labels."""
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

    Most of a small one is TensorFlow itself; so the second ratio is of what they grew by since it was loaded.
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
    """Return the memory in MB of a new process after its imports, and its peak after a few steps."""
    command = [sys.executable, "-m", "simulations.benchmarks.bench_step", form, json.dumps(asdict(case))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    loaded, peak = json.loads(done.stdout)
    return loaded, peak


def _resident(line: str) -> float:
    """Return a line of Linux's /proc/self/status in MB; what `getrusage` says includes the parent of a new process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(status[line].split()[0]) * 1024 / MEGABYTE


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


def _measure_memory(form: Form, case: Case) -> None:
    loaded = _resident("VmRSS")
    action = prepared(case, form)
    for _ in range(MEMORY_STEPS):
        action()
    print(json.dumps([loaded, _resident("VmHWM")]))


if __name__ == "__main__":
    _measure_memory(sys.argv[1], Case(**json.loads(sys.argv[2])))  # type: ignore[arg-type]
