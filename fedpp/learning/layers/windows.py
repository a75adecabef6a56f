"""Window arithmetic of convolutions and poolings: sizes, padding, number of positions."""

from collections.abc import Sequence

from fedpp.errors import ConfigError, ModelError

Pair = tuple[int, int]


def pair(value: int | Sequence[int], setting: str) -> Pair:
    """Return sizes for rows and columns from one size for both or from two; raise `ConfigError` for other values."""
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ConfigError(f"{setting} must be one or two whole numbers of at least 1, got {value!r}")
    return sizes[0], sizes[1]


def known_padding(padding: str, layer: str) -> str:
    """Return the padding; raise `ConfigError` if it is neither "valid" nor "same"."""
    if padding not in {"valid", "same"}:
        raise ConfigError(f'layer {layer}: padding must be "valid" or "same", got {padding!r}')
    return padding


def positions(frame: Sequence[int | None], window: Pair, strides: Pair, padding: str, layer: str) -> list[int | None]:
    """Return the number of window positions along rows and columns; raise `ModelError` if there is none."""
    counts = [
        None if size is None else -(-size // stride) if padding == "same" else (size - width) // stride + 1
        for size, width, stride in zip(frame, window, strides, strict=True)
    ]
    if any(count is not None and count < 1 for count in counts):
        raise ModelError(
            f"layer {layer}: a window of {window} does not fit into frames of {tuple(frame)}: "
            "use larger frames, fewer layers or padding same"
        )
    return counts
