"""Initial weights in NumPy, with the distributions of Keras's initialisers: the vault needs no TensorFlow."""

import numpy as np
from numpy.typing import NDArray

from fedpp.cipher import algebra
from fedpp.cipher.evaluation_key import AnyKey
from fedpp.config.model_spec import ModelSpec, WeightSpec


def initial_weights(network: ModelSpec, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return the plaintext initial weights of a network, by name; the same seed gives the same weights.

    They are rounded to float32, so that both dtypes of a run start from the same numbers.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    return {spec.name: _draw(spec, generator).astype(np.float32).astype(np.float64) for spec in network.weights()}


def encrypted_initial_weights(network: ModelSpec, seed: int, key: AnyKey) -> dict[str, algebra.Matrix]:
    """Return initial weights as rows `[*shape, n]`; decoys have the same initialiser and seeds derived from the key.

    The evaluation key is enough to encrypt, so one site can start by itself. In a federation the vault of one site does
    the same with the domain's key.
    """
    draws = [initial_weights(network, s) for s in (seed, *(key.weight_seed(seed, slot) for slot in range(1, key.n)))]
    return {name: algebra.encrypt(np.stack([draw[name] for draw in draws], axis=-1), key.matrix) for name in draws[0]}


def _draw(spec: WeightSpec, generator: np.random.Generator) -> NDArray[np.float64]:
    if spec.initializer == "zeros":
        return np.zeros(spec.shape)
    if spec.initializer == "unit_forget_bias":  # Jozefowicz et al. 2015: gates i, f, g, o
        return np.repeat([0.0, 1.0, 0.0, 0.0], spec.shape[0] // 4)
    if spec.initializer == "orthogonal":  # Saxe et al. 2014
        tall = generator.standard_normal(spec.shape[::-1])
        q, r = np.linalg.qr(tall)
        return (q * np.sign(np.diag(r))).T
    *receptive, fan_in, fan_out = spec.shape  # Glorot & Bengio 2010
    limit = np.sqrt(6.0 / (np.prod(receptive) * (fan_in + fan_out)))
    return generator.uniform(-limit, limit, spec.shape)
