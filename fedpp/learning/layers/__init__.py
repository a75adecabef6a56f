"""Keras layers that compute on ciphertext, with Keras's names and arguments; the first argument is the algebra.

Between `FromRows` and `ToRows` a tensor is a tuple of n ordinary tensors of the plaintext's shape
(`fedpp.cipher.components`). A linear map without weights is applied to each of them, a layer with an encrypted kernel
computes a few ordinary products, and a nonlinear function is applied to the slots. Each encrypted weight is n
consecutive Keras variables. Kernels start at zero: set them from a vault's rows.

Two differences from Keras: the default padding of convolutions is "same", and padding masks are not attached to
tensors; layers that use one take it as their second argument `valid`, bool `[batch, steps]`, True for real frames.

A model is saved without its key, and loaded under it::

    with layers.under(key.algebra()):
        model = keras.models.load_model(path)
"""

from fedpp.learning.key_scope import under
from fedpp.learning.layers.dropout import Dropout
from fedpp.learning.layers.encrypted_layer import EncryptedLayer
from fedpp.learning.layers.functions import Activation, ReLU
from fedpp.learning.layers.linear import Conv2D, Dense, DepthwiseConv2D
from fedpp.learning.layers.merging import Add, Concatenate
from fedpp.learning.layers.normalization import BatchNormalization, LayerNormalization
from fedpp.learning.layers.pooling import (
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)
from fedpp.learning.layers.recurrent import GRU, LSTM, Bidirectional
from fedpp.learning.layers.shaping import Flatten, FoldFrames, FromRows, Reshape, ToRows, UnfoldFrames

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "AveragePooling2D",
    "BatchNormalization",
    "Bidirectional",
    "Concatenate",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "EncryptedLayer",
    "Flatten",
    "FoldFrames",
    "FromRows",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "LayerNormalization",
    "MaxPooling2D",
    "ReLU",
    "Reshape",
    "ToRows",
    "UnfoldFrames",
    "under",
]
