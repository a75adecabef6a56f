"""Layers with an encrypted kernel: convolutions and dense layers, with pooling, bias and activation included.

The default padding of convolutions is "same", as in all networks here; Keras's is "valid".
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.errors import ConfigError
from fedpp.learning.layers import fused
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, Shape, at_least_one
from fedpp.learning.layers.functions import function
from fedpp.learning.layers.windows import Pair, known_padding, pair, positions


class _Linear(EncryptedLayer):
    """Linear map with encrypted kernel and bias, followed by functions of the slots.

    The functions are part of the layer so that the tensors can stay in slots after the product. Pooling comes before
    the bias: `max(x) + b == max(x + b)` bit for bit, since rounding is monotonic.
    """

    pool_size: Pair = (1, 1)  # of the included max pooling

    def __init__(
        self, algebra: Algebra, *, use_bias: bool = True, activation: str | None = None, **keywords: Any
    ) -> None:
        super().__init__(algebra, **keywords)
        self.use_bias = use_bias
        self.activation, self.function = activation, function(activation, self.name)

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the bilinear product of one tensor with one kernel."""
        raise NotImplementedError

    def build_weights(self, kernel: tuple[int, ...], features: int) -> None:
        """Add a kernel of this shape and a bias for each feature."""
        self.kernel = self.add_ciphertext("kernel", kernel)
        self.bias = self.add_ciphertext("bias", (features,)) if self.use_bias else None

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return `activation(pool(x * kernel) + bias)`."""
        if self.function is None and self.pool_size == (1, 1):
            product = self.algebra.product(tuple(x), self.kernel, self.linear)
            return self.algebra.add(product, self.bias) if self.bias else product
        products = self.algebra.product_slots(tuple(x), self.kernel, self.linear)
        biases = self.algebra.to_slots(self.bias) if self.bias else (None,) * self.algebra.n
        return self.algebra.from_slots(tuple(map(self._follow, products, biases)))

    def _follow(self, slot: Tensor, bias: Tensor | None) -> Tensor:
        pooled = ops.max_pool(slot, self.pool_size) if self.pool_size != (1, 1) else slot
        shifted = pooled if bias is None else pooled + bias
        return self.function(shifted) if self.function else shifted


class _Convolution(_Linear):
    """Linear map of the windows of a frame."""

    axes = "batch height width channels"

    def __init__(
        self,
        algebra: Algebra,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int],
        padding: str,
        dilation_rate: int | Sequence[int],
        *,
        pool_size: int | Sequence[int] = 1,
        **keywords: Any,
    ) -> None:
        super().__init__(algebra, **keywords)
        self.pool_size = pair(pool_size, f"layer {self.name}: pool_size")
        self.kernel_size = pair(kernel_size, f"layer {self.name}: kernel_size")
        self.strides = pair(strides, f"layer {self.name}: strides")
        self.dilation_rate = pair(dilation_rate, f"layer {self.name}: dilation_rate")
        self.padding = known_padding(padding, self.name)

    def channels(self, shapes: Sequence[Shape]) -> int:
        """Return the channels of the input; raise `ModelError` for frames that are too small."""
        shape = self.plain_shape(shapes)
        (height, width), (rows, columns) = self.kernel_size, self.dilation_rate
        window: Pair = ((height - 1) * rows + 1, (width - 1) * columns + 1)
        frame = positions(shape[1:3], window, self.strides, self.padding, self.name)
        positions(frame, self.pool_size, self.pool_size, "valid", self.name)
        return self.fixed(shape, -1)[0]


@keras.saving.register_keras_serializable(package="fedpp")
class Conv2D(_Convolution):
    """`keras.layers.Conv2D` on ciphertext, with encrypted kernel and bias, and optional max pooling.

    `n` tensors `[batch, height, width, channels]` to `n` tensors `[batch, height', width', filters]`.
    """

    settings = (
        "filters", "kernel_size", "strides", "padding", "dilation_rate", "use_bias", "pool_size", "activation",
    )  # fmt: skip

    def __init__(
        self,
        algebra: Algebra,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "same",
        *,
        dilation_rate: int | Sequence[int] = 1,
        **keywords: Any,
    ) -> None:
        """Take the settings of the stock layer, and the size of the max pooling before the activation."""
        super().__init__(algebra, kernel_size, strides, padding, dilation_rate, **keywords)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ConfigError(
                f"layer {self.name}: strides {self.strides} and dilation_rate {self.dilation_rate} exclude each other"
            )
        self.filters = at_least_one(filters, f"layer {self.name}: filters")

    def build(self, shapes: Sequence[Shape]) -> None:
        """Add kernel `[height, width, channels, filters]` and bias."""
        self.build_weights((*self.kernel_size, self.channels(shapes), self.filters), self.filters)

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return `activation(pool(x * kernel) + bias)`."""
        if not fused.fits(self.algebra, x, self.pool_size, self.activation):
            return super().call(x)
        weights = (self.kernel, self.bias) if self.bias else (self.kernel,)
        kernel, *bias = (tuple(map(ops.convert_to_tensor, weight)) for weight in weights)
        relu = self.activation == "relu"
        return fused.block(self.algebra, tuple(x), kernel, bias[0] if bias else None, self.linear, relu=relu)

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the convolution."""
        return ops.conv(x, kernel, self.strides, self.padding, dilation_rate=self.dilation_rate)


@keras.saving.register_keras_serializable(package="fedpp")
class DepthwiseConv2D(_Convolution):
    """`keras.layers.DepthwiseConv2D` on ciphertext: each channel has its own kernels.

    `n` tensors `[batch, height, width, channels]` to `n` tensors
    `[batch, height', width', channels * depth_multiplier]`.
    """

    settings = (
        "kernel_size", "strides", "padding", "depth_multiplier", "dilation_rate", "use_bias", "pool_size", "activation",
    )  # fmt: skip

    def __init__(
        self,
        algebra: Algebra,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "same",
        *,
        depth_multiplier: int = 1,
        dilation_rate: int | Sequence[int] = 1,
        **keywords: Any,
    ) -> None:
        """Take the settings of the stock layer, and the size of the max pooling before the activation."""
        super().__init__(algebra, kernel_size, strides, padding, dilation_rate, **keywords)
        if len(set(self.strides)) != 1:
            raise ConfigError(f"layer {self.name}: strides must be the same for rows and columns, got {self.strides}")
        self.depth_multiplier = at_least_one(depth_multiplier, f"layer {self.name}: depth_multiplier")

    def build(self, shapes: Sequence[Shape]) -> None:
        """Add kernel `[height, width, channels, depth_multiplier]` and bias."""
        channels = self.channels(shapes)
        self.build_weights((*self.kernel_size, channels, self.depth_multiplier), channels * self.depth_multiplier)

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the convolution of each channel."""
        return ops.depthwise_conv(x, kernel, self.strides, self.padding, dilation_rate=self.dilation_rate)


@keras.saving.register_keras_serializable(package="fedpp")
class Dense(_Linear):
    """`keras.layers.Dense` on ciphertext: n tensors `[batch, ..., features]` to n tensors `[batch, ..., units]`."""

    settings = ("units", "activation", "use_bias")

    def __init__(
        self, algebra: Algebra, units: int, activation: str | None = None, *, use_bias: bool = True, **keywords: Any
    ) -> None:
        super().__init__(algebra, activation=activation, use_bias=use_bias, **keywords)
        self.units = at_least_one(units, f"layer {self.name}: units")

    def build(self, shapes: Sequence[Shape]) -> None:
        """Add kernel `[features, units]` and bias."""
        (features,) = self.fixed(self.plain_shape(shapes), -1)
        self.build_weights((features, self.units), self.units)

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the matrix product."""
        return ops.matmul(x, kernel)
