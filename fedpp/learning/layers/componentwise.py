"""A linear map given as a function; it cannot be saved."""

from collections.abc import Callable
from typing import Any, NoReturn

from fedpp.cipher.components import Algebra, Tensor
from fedpp.learning.layers.encrypted_layer import LinearMap


class Componentwise(LinearMap):
    """Apply a linear map without weights to each tensor of the ciphertext."""

    def __init__(self, algebra: Algebra, function: Callable[[Tensor], Tensor], **keywords: Any) -> None:
        """Hold the map; it must be linear."""
        super().__init__(algebra, **keywords)
        self.function = function

    def part(self, part: Tensor) -> Tensor:
        """Return one mapped tensor."""
        return self.function(part)

    def get_config(self) -> NoReturn:
        """Refuse: a function is not a setting."""
        raise TypeError("a function is not saved: use Reshape, FoldFrames or UnfoldFrames")
