"""Fused kernel after a convolution's products: slots, 2 x 2 max pooling, bias, ReLU, and back to components.

On a CPU a training step on ciphertext costs three convolutions instead of one, and memory traffic: as single
operations, these maps read or write full-size tensors some forty times. Here XLA fuses them into two loops forward and
one for each product backward. The gradient is written by hand: one byte a window stores, for both slots, where the
maximum was and whether ReLU passed it. For n = 2 only; layers use the general path otherwise.
"""

from collections.abc import Callable

import tensorflow as tf

from fedpp.cipher.components import Algebra, Ciphertext, Tensor

SMALLEST = 16 * 16  # pixels: compiling takes half a second a layer, which smaller frames do not save
_NOWHERE = 4  # the place of a maximum that ReLU set to zero
_SLOT = 8  # base of a window's byte: its two digits are the places of the two slots

_Pair = tuple[Tensor, Tensor]
_ToSlots = Callable[[tuple[Tensor, ...], Tensor], _Pair]


def fits(algebra: Algebra, x: Ciphertext, pool_size: tuple[int, int], activation: str | None) -> bool:
    """Return whether `block` supports these arguments and is faster: on a CPU, for frames of known, not small size."""
    return (
        algebra.n == 2
        and pool_size == (2, 2)
        and activation in {None, "linear", "relu"}
        and None not in x[0].shape[1:]
        and x[0].shape[1] * x[0].shape[2] >= SMALLEST
        and not tf.config.list_logical_devices("GPU")
    )


def block(
    algebra: Algebra,
    x: Ciphertext,
    kernel: Ciphertext,
    bias: Ciphertext | None,
    convolve: Callable[[Tensor, Tensor], Tensor],
    *,
    relu: bool,
) -> Ciphertext:
    """Return `relu(max_pool(convolve(x, kernel), 2) + bias)` of tensors `[batch, height, width, channels]`.

    Law: up to rounding, result and gradient are those of the general path of `fedpp.learning.layers.Conv2D`.
    But NaN propagates, while TensorFlow's pooling on a CPU drops it.
    """
    root = tf.constant(algebra.d**0.5, x[0].dtype)
    to_slots: _ToSlots
    if x[0].shape[-1] == 1:
        # Four products in two convolutions: with one or two channels, only writing the output takes time.
        both, kernels = _compiled(_interleaved)(*x), ((kernel[0], kernel[1] * algebra.d), (kernel[1], kernel[0]))
        products = tuple(convolve(both, tf.concat(pair, -2)) for pair in kernels)
        to_slots = _slots_of_components
    else:
        products = algebra.three_products(x, kernel, convolve)
        to_slots = _slots_of_products
    biases = (tf.zeros(products[0].shape[-1:], root.dtype),) * 2 if bias is None else algebra.to_slots(bias)
    return _pooled(to_slots, products, biases, root, relu=relu)


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """Return two tensors of one channel as one of two channels; TensorFlow's concatenation takes ten times as long."""
    return tf.where(tf.constant([True, False]), first, second)


def _slots_of_products(products: tuple[Tensor, ...], root: Tensor) -> _Pair:  # noqa: ARG001
    """Return the slots that `Algebra.product_slots` computes from the three products."""
    p, q, r = products
    return r + (q - p), (p + q) * 3.0 - r


def _slots_of_components(components: tuple[Tensor, ...], root: Tensor) -> _Pair:
    """Return the slots that `Algebra.to_slots` computes from a product's components."""
    difference = components[1] * root
    return components[0] + difference, components[0] - difference


def _pooled(to_slots: _ToSlots, products: tuple[Tensor, ...], biases: _Pair, root: Tensor, *, relu: bool) -> Ciphertext:
    """Return the components of `relu(max_pool(to_slots(products)) + biases)`."""

    def values(*given: Tensor) -> Tensor:
        one, two = (_largest(slot) + bias for slot, bias in _slots(to_slots, given, root))
        if relu:
            one, two = tf.nn.relu(one), tf.nn.relu(two)
        # XLA on the CPU reads its input again for each output: one complex number makes the components one output.
        return tf.complex((one + two) * 0.5, (one - two) * (0.5 / root))

    def places(*given: Tensor) -> Tensor:
        one, two = (_place(slot, bias, relu=relu) for slot, bias in _slots(to_slots, given, root))
        return one + two * tf.constant(_SLOT, tf.uint8)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def function(*given: Tensor) -> tuple[_Pair, Callable[..., list[Tensor]]]:
        pair, where = _compiled(values)(*given), _compiled(places)(*given)

        def gradient(*upstream: Tensor) -> list[Tensor]:
            return _gradient(to_slots, products, upstream, where, root)

        return (tf.math.real(pair), tf.math.imag(pair)), gradient

    return tuple(function(*products, *biases))


def _gradient(
    to_slots: _ToSlots, products: tuple[Tensor, ...], upstream: tuple[Tensor, ...], where: Tensor, root: Tensor
) -> list[Tensor]:
    """Return the derivatives by products and biases; `where` holds the places of both slots."""

    def by_slots(first: Tensor, second: Tensor, where: Tensor) -> _Pair:
        half, other = first * 0.5, second * (0.5 / root)
        digits = where % _SLOT, where // _SLOT
        pair = zip((half + other, half - other), digits, strict=True)
        return tuple(tf.where(digit == _NOWHERE, tf.zeros_like(g), g) for g, digit in pair)

    def by_biases(*given: Tensor) -> list[Tensor]:
        return [tf.reduce_sum(g, axis=(0, 1, 2)) for g in by_slots(*given)]

    def by_product(index: int) -> Callable[..., Tensor]:
        def function(*given: Tensor) -> Tensor:
            # The derivative of the slots by a product: their value for 1 at this product and 0 at the others.
            unit = tuple(tf.constant(float(k == index), root.dtype) for k in range(len(products)))
            total = sum(
                _at(digit, g * factor)
                for g, digit, factor in zip(
                    by_slots(*given), (given[-1] % _SLOT, given[-1] // _SLOT), to_slots(unit, root), strict=True
                )
            )
            return _unwindowed(total, products[0].shape)

        return function

    given = (*upstream, where)
    by_products = [_compiled(by_product(index))(*given) for index in range(len(products))]
    return [*by_products, *_compiled(by_biases)(*given)]


def _slots(to_slots: _ToSlots, given: tuple[Tensor, ...], root: Tensor) -> list[_Pair]:
    """Return both slots of the products, in windows, each with its bias; the last two arguments are the biases."""
    return list(zip(to_slots(tuple(map(_windows, given[:-2])), root), given[-2:], strict=True))


def _windows(x: Tensor) -> Tensor:
    """Return `[batch, height, width, channels]` as `[batch, rows, 2, columns, 2, channels]`, without an odd edge."""
    rows, columns, channels = x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    return tf.reshape(x[:, : 2 * rows, : 2 * columns], (-1, rows, 2, columns, 2, channels))


def _unwindowed(x: Tensor, shape: tf.TensorShape) -> Tensor:
    """Undo `_windows`; the edge is zero."""
    _, height, width, channels = shape
    whole = tf.reshape(x, (-1, height // 2 * 2, width // 2 * 2, channels))
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    return tf.pad(whole, odd) if height % 2 or width % 2 else whole


def _corners(windows: Tensor) -> list[Tensor]:
    return [windows[:, :, k // 2, :, k % 2] for k in range(4)]


def _largest(windows: Tensor) -> Tensor:
    """Return the maximum, or NaN if a value is NaN, which XLA's own maximum on the CPU may ignore."""
    largest, *others = _corners(windows)
    for value in others:
        largest = tf.where((value > largest) | tf.math.is_nan(value), value, largest)
    return largest


def _place(windows: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """Return the place of the first maximum, as in TensorFlow, or nowhere if ReLU zeroes it; ReLU'(0) is 0."""
    largest, *others = _corners(windows)
    place = tf.zeros_like(largest, tf.uint8)
    for k, value in enumerate(others, 1):
        place = tf.where(value > largest, tf.constant(k, tf.uint8), place)
        largest = tf.maximum(largest, value)
    return tf.where(largest + bias > 0, place, tf.constant(_NOWHERE, tf.uint8)) if relu else place


def _at(place: Tensor, values: Tensor) -> Tensor:
    """Return windows with the values at their places and zero elsewhere."""
    corners = tf.constant([[0, 1], [2, 3]], tf.uint8)[:, None, :, None]
    expanded = values[:, :, None, :, None]
    return tf.where(place[:, :, None, :, None] == corners, expanded, tf.zeros_like(expanded))


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function compiled by XLA, for use in a graph; in eager mode each call would compile it again."""
    compiled: Callable[..., Tensor] = tf.function(function, jit_compile=True, autograph=False)
    return function if tf.executing_eagerly() else compiled
