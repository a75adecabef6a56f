"""Statistical tests that tell bytes from chance, and find known values in what hides nothing.

Each correlation is held to `SIGMAS`, which chance exceeds once in 1.7 million: a test that must find nothing says how
many it makes.
"""

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from flwr.app import RecordDict
from scipy.stats import chi2
from sklearn.decomposition import FastICA

from fedpp.aggregation.global_state import FORMAT

SIGMAS = 5.0
VIEWS = ("<u4", "<u8", "<f8")
END = 32 + 16  # bytes after a sealed state's rows: its SHA-256, and the seal's tag
_SEALED, _CLEAR = b'{"about":', FORMAT.encode()  # how states begin


def arrays_of(content: RecordDict) -> Iterator[tuple[str, bytes]]:
    """Yield the arrays of a message, each with its name, as bytes without NumPy's header."""
    for record in content.array_records.values():
        for name, array in record.items():
            yield name, array.data[10 + int.from_bytes(array.data[8:10], "little") :]


def is_state(tensor: bytes) -> bool:
    return tensor.startswith((_SEALED, _CLEAR))


def payload(tensor: bytes) -> bytes:
    """Return what of a tensor must look like chance: of a state all but its first line, and the lengths in a seal.

    In clear, rows begin at its first byte.
    """
    if not is_state(tensor):
        return tensor
    rest = tensor.partition(b"\n")[2]
    if tensor.startswith(_CLEAR):  # the magic line and the header
        return rest.partition(b"\n")[2]
    records = []
    while rest:
        length = int.from_bytes(rest[:4], "little")
        records.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return b"".join(records)


def findings(tensor: bytes, truth: Mapping[str, np.ndarray]) -> set[str]:
    """Return what the tests find in bytes, and to which kinds of truth, by the names' first words, it is correlated."""
    content = payload(tensor)
    data = np.frombuffer(content, np.uint8)
    found = set()
    counts = np.bincount(data, minlength=256)
    if chi2.sf(((counts - len(data) / 256) ** 2 / (len(data) / 256)).sum(), 255) < 1e-7:
        found.add("byte frequencies")
    for lag in (1, 2, 4, 8, 16):
        if is_correlated(data[:-lag], data[lag:]):
            found.add("serial correlation")
    if len(zlib.compress(content, 9)) < len(content):
        found.add("compressible")
    for view in VIEWS:
        found |= {f"correlation with {_kind(name)}" for name, of in truth.items() if _shows(tensor, view, of)}
    return found


def separated(tensor: bytes, truth: Mapping[str, np.ndarray], view: str) -> set[str]:
    """Return of what FastICA finds a source: two mixed signals a row, as rows of MORE are."""
    found = set()
    for name, of in truth.items():
        for signals in _signals(tensor, view, len(of)):
            ica = FastICA(random_state=0, whiten="unit-variance", max_iter=1000, tol=1e-3)
            if any(is_correlated(source, of) for source in ica.fit_transform(signals).T):
                found.add(_kind(name))
    return found


def is_correlated(x: np.ndarray, y: np.ndarray) -> bool:
    x, y = x.astype(float), y.astype(float)
    if not x.std() or not y.std():
        return True
    return abs(float(np.corrcoef(x, y)[0, 1])) > SIGMAS / math.sqrt(len(x))


def _shows(tensor: bytes, view: str, of: np.ndarray) -> bool:
    return any(is_correlated(column, of) for signals in _signals(tensor, view, len(of)) for column in signals.T)


def _signals(tensor: bytes, view: str, rows: int) -> Iterator[np.ndarray]:
    """Yield what could be rows `[rows, 2]`: at the beginning, one number later, and where a sealed state has them."""
    content, width = payload(tensor), np.dtype(view).itemsize
    size = 2 * rows * width
    starts = [0, width, *([len(content) - END - size] if tensor.startswith(_SEALED) else [])]
    for start in starts:
        if 0 <= start <= len(content) - size:
            yield _numbers(content[start : start + size], view).reshape(-1, 2)


def _kind(name: str) -> str:
    return name.split(" of ", maxsplit=1)[0]


def _numbers(content: bytes, view: str) -> np.ndarray:
    values = np.frombuffer(content, view)
    if view != "<f8":
        return values.view(view.replace("u", "i")).astype(np.float64)
    return np.nan_to_num(np.clip(values, -1e6, 1e6))  # random bytes are numbers of any size
