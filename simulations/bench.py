"""Benchmarks: commands that print figures. Ratios are ours divided by the other, in one process, alternating."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

STEP_CASES = ((64, 16), (128, 8))  # image side, batch
FRAMES, REPETITIONS, WARM_UP = 4, 25, 3


def step() -> dict[str, Any]:
    """Time one training step of the CNN-Bi-LSTM on ciphertext and on plaintext, and Keras's own `fit`.

    The last shows that the plaintext twin is not slow: stock layers, loss and Adam, default settings.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = [_step(side, batch) for side, batch in STEP_CASES]
    return {
        "name": "step",
        "rows": rows,
        "versions": {name: version(name) for name in ("fedpp", "tensorflow", "keras", "numpy")},
    }


def _step(side: int, batch: int) -> dict[str, Any]:
    import keras
    import numpy as np
    import tensorflow as tf

    from fedpp.cipher.components import Algebra
    from fedpp.config import NetworkSpec
    from fedpp.keys.domain import KeyDomain
    from fedpp.keys.encryption import SequenceCipher
    from fedpp.learning import models
    from fedpp.learning.initial import encrypted_initial_weights, initial_weights
    from fedpp.learning.losses import EncryptedCrossEntropy
    from fedpp.learning.optimizers import Adam

    network = NetworkSpec(FRAMES, side, side, 1, 2)
    domain = KeyDomain(bytes(32), n=2, epoch=1)
    key = domain.evaluation_key()
    algebra = key.algebra()
    generator = np.random.default_rng(0)
    frames = generator.normal(size=(batch, FRAMES, side, side, 1)).astype(np.float32)
    labels = generator.integers(2, size=batch)
    one_hot = np.eye(2, dtype=np.float32)[labels]
    cipher = SequenceCipher(domain, "float32")
    encrypted_frames = tf.constant(cipher.frames("batch", frames))
    encrypted_labels = tf.constant(np.stack([cipher.label(str(i), int(k), 2) for i, k in enumerate(labels)]))
    valid = tf.ones((batch, FRAMES), tf.bool)

    encrypted = models.encrypted(network, algebra, "float32")
    models.set_rows(encrypted, network, algebra, encrypted_initial_weights(network, 0, key))
    encrypted.compile(Adam(algebra), EncryptedCrossEntropy(algebra, "float32"), jit_compile=False)
    drawn = initial_weights(network, 0)
    twins = [models.plaintext(network, "float32") for _ in range(2)]
    for twin in twins:
        twin.set_weights([drawn[spec.name] for spec in network.weights()])
    twins[0].compile(
        Adam(Algebra.plaintext()), keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    twins[1].compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    plain, target = tf.constant(frames), tf.constant(one_hot)
    steps: dict[str, Callable[[], object]] = {
        "ciphertext": lambda: encrypted.train_on_batch((encrypted_frames, valid), encrypted_labels),
        "plaintext": lambda: twins[0].train_on_batch((plain, valid), target),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*steps, "keras_fit")}
    data = tf.data.Dataset.from_tensors(((plain, valid), target)).repeat(REPETITIONS)
    for repetition in range(-WARM_UP, REPETITIONS):
        for name, action in steps.items():
            started = time.perf_counter()
            action()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - started)
        _progress(f"{side}x{side}: {max(0, repetition + 1)} of {REPETITIONS}")
    for repetition in range(-1, 3):
        started = time.perf_counter()
        twins[1].fit(data, shuffle=False, verbose=0)
        if repetition >= 0:  # the first epoch holds the tracing
            seconds["keras_fit"].append((time.perf_counter() - started) / REPETITIONS)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "case": f"{side}x{side}, {FRAMES} frames, batch {batch}",
        "ciphertext_ms": 1e3 * medians["ciphertext"],
        "plaintext_ms": 1e3 * medians["plaintext"],
        "ratio": medians["ciphertext"] / medians["plaintext"],
        "keras_fit_ms": 1e3 * medians["keras_fit"],
        "plaintext_to_keras_fit": medians["plaintext"] / medians["keras_fit"],
    }


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


def ingest() -> dict[str, Any]:
    """Time the encryption of frames and whole ingests."""
    from .bench_ingest import ingest as measure

    return measure()


def drift() -> dict[str, Any]:
    """Measure how far 2,000 steps on ciphertext lead from the plaintext twin, and the twin from itself."""
    from .bench_drift import drift as measure

    return measure()


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {"step": step, "ingest": ingest, "drift": drift}
