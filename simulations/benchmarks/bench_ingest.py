"""Benchmark of ingest: encryption against memcpy and AES-256-GCM, and the peak memory of ingests of two sizes."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from PIL import Image

from fedpp.imaging.images import read_image
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence
from fedpp.imaging.splits import SplitPlan
from fedpp.ingest.ingestion import IngestSettings
from fedpp.ingest.ingestion import ingest as write_dataset
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain

from .measuring import MIB, alternating, in_own_process, memory_bytes, result

SIDE, REPETITIONS = 64, 15
LENGTHS = (4, 16)  # frames of a sequence
ROWS_BYTES = 2**28  # of one repetition's ciphertext: more than any cache
INGESTS = (10_000, 100_000)  # frames
IMAGES = 200  # different files, each read many times

_DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=2)


def ingest() -> dict[str, Any]:
    """Time the encryption in one thread, and two ingests, each in a process of its own."""
    rows = [_encryption(frames) for frames in LENGTHS]
    with tempfile.TemporaryDirectory(prefix="fedpp-bench-") as folder:
        images = _images(Path(folder))
        for frames in INGESTS:
            figures = in_own_process("bench_ingest", images, frames)
            rows.append({"case": f"ingest of {frames:,} PNG frames of {SIDE}x{SIDE}", **figures})
    return result("ingest", rows, ("fedpp", "numpy", "scipy", "cryptography"))


def _encryption(frames: int) -> dict[str, Any]:
    shape = (frames, SIDE, SIDE, 1)
    count = ROWS_BYTES // (int(np.prod(shape)) * 8)
    pixels = np.random.default_rng(0).standard_normal((count, *shape), np.float32)
    rows, copy = np.ones((2, count, *shape, 2), np.float32)
    cipher, aes = SequenceCipher(_DOMAIN, "float32"), AESGCM(bytes(32))

    def encrypt() -> None:
        for number in range(count):
            cipher.frames("sequence", pixels[number], rows[number])

    def aes_gcm() -> None:
        for number in range(count):
            aes.encrypt(number.to_bytes(12, "little"), memoryview(pixels[number]).cast("B"), None)

    seconds = alternating(
        {"encrypt": encrypt, "memcpy": lambda: np.copyto(copy, rows), "aes_gcm": aes_gcm}, REPETITIONS
    )
    return {
        "case": f"encryption alone, sequences of {frames} frames of {SIDE}x{SIDE}, float32",
        "frames_per_second": count * frames / seconds["encrypt"],
        "gb_per_second": rows.nbytes / seconds["encrypt"] / 1e9,
        "memcpy_gb_per_second": rows.nbytes / seconds["memcpy"] / 1e9,
        "time_to_memcpy": seconds["encrypt"] / seconds["memcpy"],
        "aes_gcm_frames_per_second": count * frames / seconds["aes_gcm"],
        "time_to_aes_gcm": seconds["encrypt"] / seconds["aes_gcm"],
    }


def _images(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / f"{number}.png")
    return folder


def _ingest(images: Path, frames: int) -> dict[str, float]:
    """Ingest this many frames, 4 a sequence, and remove the dataset; return the speed and the peak memory in MiB."""
    length = LENGTHS[0]
    files = [FrameFile(file, 1, read_image) for file in sorted(images.glob("*.png"))]
    sequences = [
        ImageSequence(
            str(first), str(first), None, FrameFiles([files[(first + i) % len(files)] for i in range(length)])
        )
        for first in range(0, frames, length)
    ]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=images) as folder:
        write_dataset(
            sequences,
            Path(folder) / "dataset",
            domain=_DOMAIN,
            class_map=ClassMap(()),
            settings=IngestSettings(Preparation("float32", length, SIDE, SIDE), SplitPlan()),
            progress=True,
        )
        seconds = time.perf_counter() - started
    return {"frames_per_second": frames / seconds, "peak_mb": memory_bytes("VmHWM") / MIB}


if __name__ == "__main__":
    print(json.dumps(_ingest(Path(sys.argv[1]), int(sys.argv[2]))))
