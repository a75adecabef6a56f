"""Keras models of a model specification: on ciphertext, and the plaintext reference of stock Keras layers.

Both fold the frames into the batch by a reshape (a `TimeDistributed` costs three times the plaintext's time)
and return logits. Weights are exchanged by name, in the order of `ModelSpec.weights`.
"""

from collections.abc import Iterator, Mapping

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from fedpp.arrays import pieces
from fedpp.cipher.components import Algebra, Tensor
from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelSpec, WeightSpec
from fedpp.errors import ModelError
from fedpp.learning import decoys, layers
from fedpp.learning.gradient_accumulation import AccumulatingModel
from fedpp.learning.layers.voting import EncryptedVote, Vote

Weights = Mapping[str, NDArray[np.floating]]


def encrypted(network: ModelSpec, algebra: Algebra, dtype: Dtype) -> AccumulatingModel:
    """Build the network on ciphertext.

    Inputs: rows `[batch, frames, height, width, channels, n]`, valid frames (bool `[batch, frames]`) and, if the
    network has time gaps, rows `[batch, frames, n]`. Output: logits, rows `[batch, classes, n]`.
    """
    task, of = network.task, network.choices
    if task.patch:
        raise ModelError(
            "networks of patches are for orthogonal frame mixing only, whose weights are plaintext (n = 1)"
        )
    rows = keras.Input((task.frames, task.height, task.width, task.channels, algebra.n), dtype=dtype)
    valid = keras.Input((task.frames,), dtype="bool")
    inputs = [rows, valid]
    x = layers.FromRows(algebra, dtype=dtype)(rows)
    x = layers.FoldFrames(algebra, dtype=dtype)(x)
    for filters in of.filters:
        x = layers.Conv2D(algebra, filters, of.kernel, pool_size=2, activation="relu", dtype=dtype)(x)
    x = layers.Flatten(algebra, dtype=dtype)(x)
    x = layers.Dense(algebra, of.dense, activation="relu", dtype=dtype)(x)
    x = layers.UnfoldFrames(algebra, task.frames, dtype=dtype)(x)
    if task.gaps:
        gaps = keras.Input((task.frames, algebra.n), dtype=dtype)
        inputs.append(gaps)
        gap = layers.Reshape(algebra, (task.frames, 1), dtype=dtype)(layers.FromRows(algebra, dtype=dtype)(gaps))
        x = layers.Concatenate(algebra, dtype=dtype)([x, gap])
    states = None
    if network.directions:
        lstm = layers.LSTM(algebra, of.lstm, return_sequences=of.voting, dtype=dtype)
        both = len(network.directions) > 1
        states = (layers.Bidirectional(algebra, lstm, dtype=dtype) if both else lstm)(x, valid)
    if of.voting:
        given = (x,) if states is None else (x, states)
        z = EncryptedVote(algebra, len(task.classes), dtype=dtype)(*given, valid=valid)
    else:
        last = layers.GlobalAveragePooling1D(algebra, dtype=dtype)(x, valid) if states is None else states
        z = layers.Dense(algebra, len(task.classes), dtype=dtype)(last)
    return AccumulatingModel(inputs, layers.ToRows(algebra, dtype=dtype)(z), name="encrypted_network")


def plaintext(network: ModelSpec, dtype: Dtype) -> AccumulatingModel:
    """Build the plaintext reference: the same inputs without slots, and logits `[batch, classes]`."""
    task, of = network.task, network.choices
    frame = (task.height, task.width, task.channels)
    sequence = keras.Input((task.frames, *frame), dtype=dtype)
    valid = keras.Input((task.frames,), dtype="bool")
    inputs = [sequence, valid]
    x = ops.reshape(sequence, (-1, *frame))
    if task.patch:
        x = _stem(network, x, dtype)
    for filters in of.filters[1:] if task.patch else of.filters:
        x = keras.layers.Conv2D(filters, of.kernel, padding="same", dtype=dtype)(x)
        x = keras.layers.MaxPooling2D(2, dtype=dtype)(x)
        x = keras.layers.ReLU(dtype=dtype)(x)
    x = keras.layers.Flatten(dtype=dtype)(x)
    x = keras.layers.Dense(of.dense, activation="relu", dtype=dtype)(x)
    x = ops.reshape(x, (-1, task.frames, of.dense))
    if task.gaps:
        gaps = keras.Input((task.frames,), dtype=dtype)
        inputs.append(gaps)
        x = ops.concatenate([x, ops.expand_dims(gaps, -1)], axis=-1)
    states = None
    if network.directions:
        # Unrolled is faster; but Keras 3.15 then zeroes the wrong end of a backward LSTM's outputs.
        lstm = keras.layers.LSTM(of.lstm, unroll=not of.voting, return_sequences=of.voting, dtype=dtype)
        both = len(network.directions) > 1
        states = (keras.layers.Bidirectional(lstm, dtype=dtype) if both else lstm)(x, mask=valid)
    if of.voting:
        given = (x,) if states is None else (x, states)
        z = Vote(len(task.classes), dtype=dtype)(*given, valid=valid)
    else:
        last = keras.layers.GlobalAveragePooling1D(dtype=dtype)(x, mask=valid) if states is None else states
        z = keras.layers.Dense(len(task.classes), dtype=dtype)(last)
    return AccumulatingModel(inputs, z, name="plaintext_network")


def _stem(network: ModelSpec, x: Tensor, dtype: Dtype) -> Tensor:
    """Apply the first block for mixed frames: a convolution over patches `[batch, height / p, width / p, p p c]`.

    Each patch is mixed by one orthogonal matrix. A kernel after an orthogonal change of its inputs is again a kernel,
    so the block can compute the same functions of mixed frames as of plain frames.
    """
    task = network.task
    side, channels = task.patch, task.channels
    height, width = task.height // side, task.width // side
    x = ops.reshape(x, (-1, height, side, width, side, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, side**2 * channels))
    stem = keras.layers.Conv2D(network.stem, network.choices.kernel, padding="same", activation="relu", dtype=dtype)
    return stem(x)


def set_rows(model: keras.Model, network: ModelSpec, algebra: Algebra, rows: Weights) -> None:
    """Set weights from rows `[*shape, n]`, decoys scaled into their bound; raise `ModelError` if they do not fit."""
    _require_fitting(rows, network, algebra.n)
    for spec, variables in _by_weight(model, network, algebra):
        row = rows[spec.name]
        factors = decoys.shares(algebra, row)
        parts = [np.empty(spec.shape, variable.dtype) for variable in variables]
        for some, *into in pieces(row.reshape(-1, algebra.n), *(part.reshape(-1) for part in parts)):
            weight = decoys.scaled(algebra, algebra.from_rows(some.astype(np.float64)), factors)
            for target, values in zip(into, weight, strict=True):
                target[:] = values
        for variable, part in zip(variables, parts, strict=True):
            variable.assign(part)


def _require_fitting(rows: Weights, network: ModelSpec, n: int) -> None:
    for spec in network.weights():
        found = rows.get(spec.name)
        if found is None or found.shape != (*spec.shape, n):
            received = "nothing" if found is None else f"shape {found.shape}"
            raise ModelError(f"weight {spec.name} must have shape {(*spec.shape, n)}, got {received}")


def get_rows(model: keras.Model, network: ModelSpec, algebra: Algebra) -> dict[str, NDArray[np.floating]]:
    """Return the encrypted network's weights as rows `[*shape, n]` of the model's dtype, by name."""
    rows: dict[str, NDArray[np.floating]] = {}
    for spec, variables in _by_weight(model, network, algebra):
        row = rows[spec.name] = np.empty((*spec.shape, algebra.n), variables[0].dtype)
        parts = [np.asarray(variable).reshape(-1) for variable in variables]
        for into, *some in pieces(row.reshape(-1, algebra.n), *parts):
            weight = tuple(part.astype(np.float64) for part in some)
            for slot, values in enumerate(algebra.to_rows(weight)):
                into[:, slot] = values
    return rows


def _by_weight(
    model: keras.Model, network: ModelSpec, algebra: Algebra
) -> Iterator[tuple[WeightSpec, list[keras.Variable]]]:
    """Yield each weight with the n variables of its ciphertext."""
    weights, n = model.weights, algebra.n
    yield from zip(network.weights(), (weights[i : i + n] for i in range(0, len(weights), n)), strict=True)
