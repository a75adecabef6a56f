"""Duplicate images: equal ones, and near duplicates of different patients.

Equal: the same decoded pixels. Near: a difference hash of 256 bits (dHash, N. Krawetz 2013, on 17 x 16 pixels)
proposes pairs, and the correlation of both images at 32 x 32 pixels confirms them. Neither is enough by itself: chest
X-rays of different patients differ in as few as 17 of 256 bits (and in none of the usual 64), and lung ultrasound
of different patients correlates up to 0.984. Copies that were compressed as JPEG, brightened or resized a little
are found; crops, rotations and mirror images are not.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedpp.imaging.same_pictures import digest
from fedpp.imaging.sequence import Frame, FrameFile

SIDE = 16  # of the hash: 16 rows of 16 comparisons
MARGIN = 2.0  # of 255 grey levels: smaller steps are noise, such as JPEG leaves on black
MIN_BITS = 8  # an image with fewer has too little structure to compare
MAX_DIFFERENT = 16  # bits of 256, between the hashes of near duplicates
MIN_CORRELATION = 0.99  # of near duplicates
MAX_CANDIDATES = 5000  # pairs that are kept for confirmation, the closest first
BANDS = MAX_DIFFERENT + 1  # hashes with at most MAX_DIFFERENT different bits agree in one band at least
BUCKET = 200  # hashes that are compared with one another

Hashes = NDArray[np.uint64]  # [images, 4]
Indices = NDArray[np.int64]

_WORDS = SIDE * SIDE // 64


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files that share images: how many, and the highest correlation among them."""

    first: FrameFile
    second: FrameFile
    images: int
    same: bool  # pixel by pixel
    correlation: float
    one_patient: bool


class ImageIndex:
    """Digests and hashes of all examined images, some 60 bytes each, with the file and patient of each.

    Constant images are not indexed: all of them are alike.
    """

    def __init__(self) -> None:
        """Start without images."""
        self._files: list[tuple[FrameFile, int]] = []  # each with its patient
        self._places = array("Q")  # two each: index of the file, and of the frame in it
        self._digests = array("Q")  # two different ones of a million images are equal with probability 3e-8
        self._hashes = array("Q")  # four each, zeros for an image without structure

    def add(self, file: FrameFile, patient: int, frames: Iterable[Frame]) -> None:
        """Index a file's frames, all of them or, if one of them raises, none."""
        entries = [
            (number, digest(frame), difference_hash(frame) or (0,) * _WORDS)
            for number, frame in enumerate(frames)
            if frame.min() < frame.max()
        ]
        for number, pixels, hash_ in entries:
            self._places.extend((len(self._files), number))
            self._digests.append(pixels)
            self._hashes.extend(hash_)
        self._files.append((file, patient))

    def same(self) -> list[Pair]:
        """Return pairs of files with equal images; an image's first file is paired with every other one."""
        order = np.argsort(np.frombuffer(self._digests, np.uint64), kind="stable")
        sorted_ = np.frombuffer(self._digests, np.uint64)[order]
        groups = np.split(order, np.flatnonzero(np.diff(sorted_)) + 1)
        files = self._image_files()
        counts: Counter[tuple[int, int]] = Counter()
        for group in groups:
            if len(group) > 1:
                first, *others = dict.fromkeys(files[group].tolist())
                counts.update((first, other) for other in others)
        return [self._pair(*pair, images, None) for pair, images in sorted(counts.items())]

    def near(self) -> tuple[list[Pair], bool]:
        """Return pairs of different patients' files with nearly equal images, and whether there may be more.

        Reads those files again, and raises `RawDataError` if one can no longer be read.
        """
        hashes = np.frombuffer(self._hashes, np.uint64).reshape(-1, _WORDS)
        _, first = np.unique(np.frombuffer(self._digests, np.uint64), return_index=True)  # equal ones are in same()
        structured = np.sort(first[hashes[first].any(axis=1)])
        files = self._image_files()
        patients = np.array([patient for _, patient in self._files], dtype=np.int64)[files[structured]]
        proposed, more = candidates(hashes[structured], patients)
        pairs = [(int(structured[left]), int(structured[right])) for left, right in proposed]
        vectors = self._correlation_vectors({image for pair in pairs for image in pair})
        found: dict[tuple[int, int], list[float]] = {}
        for left, right in pairs:
            correlation = float(vectors[left] @ vectors[right])
            if correlation >= MIN_CORRELATION:
                found.setdefault((int(files[left]), int(files[right])), []).append(correlation)
        return [self._pair(*pair, len(all_), max(all_)) for pair, all_ in sorted(found.items())], more

    def _image_files(self) -> Indices:
        return np.frombuffer(self._places, np.uint64)[::2].astype(np.int64)

    def _pair(self, first: int, second: int, images: int, correlation: float | None) -> Pair:
        (file, patient), (other, others_patient) = self._files[first], self._files[second]
        alike = 1.0 if correlation is None else min(1.0, correlation)
        return Pair(file, other, images, correlation is None, alike, patient == others_patient)

    def _correlation_vectors(self, images: set[int]) -> dict[int, NDArray[np.float32]]:
        wanted: dict[int, list[int]] = {}
        for image in sorted(images):
            wanted.setdefault(self._places[2 * image], []).append(image)
        vectors = {}
        for file, of_file in wanted.items():
            frames = self._files[file][0].read()
            vectors.update({image: correlation_vector(frames[self._places[2 * image + 1]]) for image in of_file})
        return vectors


def difference_hash(frame: Frame) -> tuple[int, ...] | None:
    """Return the difference hash of a frame that is not constant; None if it is too small or too plain."""
    if min(frame.shape) < SIDE:
        return None
    shrunk = _shrunk(frame, SIDE, SIDE + 1)
    bits = (shrunk[:, 1:] > shrunk[:, :-1] + MARGIN).ravel()
    return tuple(np.packbits(bits).view(">u8").tolist()) if bits.sum() >= MIN_BITS else None


def correlation_vector(frame: Frame) -> NDArray[np.float32]:
    """Return a vector `[1024]`; the dot product of two is their images' correlation at 32 x 32 pixels."""
    values = _shrunk(frame, 32, 32).ravel()
    values = values - values.mean()
    vector: NDArray[np.float32] = (values / max(float(np.linalg.norm(values)), 1e-12)).astype(np.float32)
    return vector


def candidates(hashes: Hashes, owners: Indices) -> tuple[list[tuple[int, int]], bool]:
    """Return pairs of different owners whose hashes differ in few bits, closest first, and whether there are more.

    `hashes` is `[k, 4]`, `owners` `[k]`; a pair is two indices, ascending. Of equal hashes of one owner only the
    first is paired.
    """
    if not len(hashes):
        return [], False
    _, first = np.unique(np.column_stack((hashes, owners.astype(np.uint64))), axis=0, return_index=True)
    first.sort()
    hashes, owners = hashes[first], owners[first]
    found: dict[tuple[int, int], int] = {}
    more = False
    for left, right in _likely(_bands(hashes)):
        distances = np.bitwise_count(hashes[left] ^ hashes[right]).sum(axis=1)
        near = (distances <= MAX_DIFFERENT) & (owners[left] != owners[right])
        pairs = zip(first[left[near]].tolist(), first[right[near]].tolist(), strict=True)
        found.update(zip(pairs, distances[near].tolist(), strict=True))
        if len(found) > 2 * MAX_CANDIDATES:
            more, found = True, _closest(found)
    return list(_closest(found)), more or len(found) > MAX_CANDIDATES


def _shrunk(frame: Frame, height: int, width: int) -> NDArray[np.float64]:
    """Return the frame resized, its darkest pixel 0 and its brightest 255."""
    low, high = float(frame.min()), float(frame.max())
    image = Image.fromarray(((frame - low) / (high - low) * 255).astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float64)


def _bands(hashes: Hashes) -> Indices:
    """Return the value `[k, BANDS]` of each band: every 17th bit, so that a band covers the whole image."""
    words = np.ascontiguousarray(hashes.astype(">u8")).view(np.uint8)
    bits = np.unpackbits(words.reshape(len(hashes), -1), axis=1)
    bands = np.empty((len(hashes), BANDS), dtype=np.int64)
    for band in range(BANDS):
        of_band = bits[:, band::BANDS]
        bands[:, band] = of_band @ (1 << np.arange(of_band.shape[1]))
    return bands


def _likely(bands: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs of rows, ascending, that are in one bucket of a band; a pair may be yielded several times."""
    for band in range(BANDS):
        buckets = _buckets(bands, band)
        order = np.argsort(buckets, kind="stable")
        buckets = buckets[order]
        places = np.arange(len(order))
        for shift in range(1, BUCKET):
            places = places[: np.searchsorted(places, len(order) - shift)]
            places = places[buckets[places] == buckets[places + shift]]
            if not len(places):
                break
            yield order[places], order[places + shift]


def _buckets(bands: Indices, band: int) -> Indices:
    """Return the bucket `[k]` of each row: those of one bucket agree in the band.

    Rows of too large a bucket must agree in the next band too, and so on. Hashes that differ in d bits agree in at
    least (17 - d) / d consecutive bands.
    """
    buckets = bands[:, band]
    for further in range(1, BANDS):
        _, buckets, sizes = np.unique(buckets, return_inverse=True, return_counts=True)
        large = sizes[buckets] > BUCKET
        if not large.any():
            break
        refined = len(sizes) + (buckets << 16) + bands[:, (band + further) % BANDS]
        buckets = np.where(large, refined, buckets)
    return buckets


def _closest(found: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    ordered = sorted(found.items(), key=lambda item: (item[1], item[0]))
    return dict(ordered[:MAX_CANDIDATES])
