"""Independent reader of datasets, keys and sealed states, written from docs/reference/dataset_format.md alone.

It imports NumPy, cryptography and the standard library, nothing of fedpp: so a gap in the page shows as a failure here.
"""

import hmac
import io
import json
import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from numpy.typing import NDArray

Array = NDArray[Any]


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """Return HKDF-SHA256."""
    return HKDF(SHA256(), length, salt, info).derive(key)


def canonical(value: Any) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def spaced(value: Any) -> bytes:
    """Return the JSON of fingerprints: sorted keys, separators with a blank."""
    return json.dumps(value, sort_keys=True, separators=(", ", ": "), ensure_ascii=True).encode("ascii")


@dataclass
class Keys:
    """Keys derived from the domain secret."""

    secret: bytes
    card: dict[str, Any]

    @classmethod
    def unsealed(cls, folder: Path, passphrase: bytes) -> "Keys":
        """Open `secret/domain.key` under the first line of a passphrase file."""
        header = json.loads((folder / "secret" / "domain.key").read_bytes())
        sealed = bytes.fromhex(header.pop("sealed"))
        log2, r, p = header["scrypt"]
        salt, text = bytes.fromhex(header["salt"]), passphrase.split(b"\n")[0].strip()
        key = Scrypt(salt=salt, length=32, n=2**log2, r=r, p=p).derive(text)
        content = AESGCM(key).decrypt(bytes.fromhex(header["nonce"]), sealed, canonical(header))
        return cls(content[:32], header["card"])

    def derive(self, purpose: str, length: int = 32) -> bytes:
        """Return the key of a purpose."""
        info = f"{purpose}|epoch={self.card['key_epoch']}|n={self.card['n']}"
        return hkdf(self.secret, b"fedpp key domain 1", info.encode(), length)

    def fingerprint(self) -> str:
        """Return the fingerprint of the card."""
        return sha256(spaced(self.card)).hexdigest()

    def matrix(self) -> Array:
        """Return R."""
        n = self.card["n"]
        for draw in range(1000):
            words = np.frombuffer(self.derive(f"matrix {draw}", 8 * n * n), "<u8")
            r = np.array([int(word) // 2**11 for word in words]) / 2.0**52 - 1.0
            r = r.reshape(n, n)
            if np.linalg.cond(r, 2) <= 10:
                return r
        raise AssertionError

    def frame_key(self, kind: str, size: int) -> Array:
        """Return K."""
        cipher = Cipher(algorithms.AES(self.derive(f"frame key {kind} {size}")), modes.CTR(bytes(16))).encryptor()
        words = struct.unpack(f"<{12 * size * size}h", cipher.update(bytes(24 * size * size)))
        sums = (np.array(words).reshape(size * size, 12) + 0.5).sum(axis=1).reshape(size, size)
        q, r = np.linalg.qr(sums)
        return np.asarray(q * np.sign(np.diag(r)))

    def pseudonym(self, kind: str, text: str) -> str:
        """Return the pseudonym in the first key epoch."""
        return hmac.new(self.derive(f"pseudonym {kind}"), text.encode(), sha256).hexdigest()[:32]

    def decoy_words(self, kind: str, name: str, values: bytes, count: int) -> Array:
        """Return the first words of the decoys' keystream for these plain values."""
        tag = AESGCM(self.derive("decoy digest", 16)).encrypt(bytes(12), f"{kind}|{name}".encode(), values)[-16:]
        cipher = Cipher(algorithms.AES(self.derive("decoy keystream", 16)), modes.CTR(tag)).encryptor()
        return np.frombuffer(cipher.update(bytes(2 * count)), "<i2").astype(np.float64)

    def opened_state(self, sealed: bytes) -> tuple[str, bytes]:
        """Return `about` and the content of a sealed state."""
        line, end, rest = sealed.partition(b"\n")
        facts = json.loads(line)
        cipher = AESGCM(hkdf(self.derive("sealed states"), facts["salt"].encode(), line + end))
        content, number = b"", 0
        while rest:
            (length,) = struct.unpack("<I", rest[:4])
            record, rest = rest[4 : 4 + length], rest[4 + length :]
            content += cipher.decrypt(struct.pack("<QI", number, int(not rest)), record, None)
            number += 1
        return facts["about"], content


def container(content: bytes) -> tuple[str, dict[str, Any], bytes]:
    """Return a container's format, header and content."""
    assert sha256(content[:-32]).digest() == content[-32:]
    name, header, rest = content[:-32].split(b"\n", 2)
    return name.decode(), json.loads(header), rest


def arrays(header: dict[str, Any], content: bytes) -> dict[str, Array]:
    """Return the arrays of a state."""
    found, start = {}, 0
    for name, dtype, shape in header["arrays"]:
        kind = np.dtype({"float32": "<f4", "float64": "<f8"}[dtype])
        size = int(np.prod(shape)) * kind.itemsize
        found[name] = np.frombuffer(content[start : start + size], kind).reshape(shape)
        start += size
    assert start == len(content)
    return found


class Dataset:
    """A dataset's folder, opened by the page; `at_rest` is the at-rest key of a sealed one."""

    def __init__(self, folder: Path, at_rest: bytes | None = None) -> None:
        """Check every checksum."""
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        facts = {name: value for name, value in self.manifest.items() if name not in {"fingerprint", "tag"}}
        assert sha256(spaced(facts)).hexdigest() == self.manifest["fingerprint"]
        for file in (facts["sequences"], *facts["shards"]):
            content = (folder / file["file"]).read_bytes()
            assert (len(content), sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
        self._records: AESGCM | None = None
        if facts["at_rest"] is not None:
            assert at_rest is not None
            salt = bytes.fromhex(facts["at_rest"])
            tag = hmac.new(hkdf(at_rest, salt, b"fedpp dataset manifest"), spaced(facts), sha256).hexdigest()
            assert tag == self.manifest["tag"]
            self._records = AESGCM(hkdf(at_rest, salt, b"fedpp dataset records"))

    def table(self) -> list[tuple[str, str, int, str]]:
        """Return id, patient, length and split of each sequence."""
        content = npy((self.folder / self.manifest["sequences"]["file"]).read_bytes())
        splits = ("train", "validation", "test")
        return [(r[0].decode(), r[1].decode(), int(r[2]), splits[int(r[3])]) for r in content.tolist()]

    def values(self, kind: str) -> Array:
        """Return all records of a kind, one after another."""
        return np.concatenate([self._shard(of) for of in self.manifest["shards"] if of["kind"] == kind])

    def _shard(self, of: dict[str, Any]) -> Array:
        content = (self.folder / of["file"]).read_bytes()
        if self._records is None:
            return npy(content)
        size = len(content) // of["count"]
        records = b""
        for place in range(of["count"]):
            nonce = of["kind"][:4].encode() + struct.pack("<Q", of["first"] + place)
            records += self._records.decrypt(nonce, content[place * size : (place + 1) * size], None)
        return np.frombuffer(records, self.manifest["dtype"]).reshape(of["count"], *self._shape(of["kind"]))

    def _shape(self, kind: str) -> tuple[int, ...]:
        of = self.manifest
        classes = len(of["classes"])
        labels = (classes, 2) if of["multi_label"] else (classes,)
        gaps = (of["frames"],) if of["gaps"] == "public" else (of["frames"], of["n"])
        return {
            "frames": (of["frames"], of["height"], of["width"], of["channels"], of["n"]),
            "labels": (*labels, of["n"]),
            "gaps": gaps,
        }[kind]


def npy(content: bytes) -> Array:
    """Return the array of an `.npy`."""
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def mixed_back(values: Array, k: Array, patch: int) -> Array:
    """Return the frames `[frames, height, width, channels]` of mixed ones: `P = C K^T`, square by square."""
    plain = np.empty_like(values)
    frames, height, width, channels = values.shape
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            square = np.s_[:, top : top + patch, left : left + patch]
            rows = values[square].reshape(frames, -1) @ k.T
            plain[square] = rows.reshape(frames, patch, patch, channels)
    return plain


def thinned(length: int, frames: int) -> list[int]:
    """Return the indices of the frames that a dataset keeps of a sequence."""
    if length <= frames:
        return list(range(length))
    return [int(np.rint(place)) for place in np.linspace(0, length - 1, frames)]


def resized(frame: Array, height: int, width: int) -> Array:
    """Return a frame resized by the triangle filter, first along its rows, then along its columns."""
    return np.asarray(_triangle(frame.shape[0], height) @ (frame @ _triangle(frame.shape[1], width).T))


def _triangle(size: int, target: int) -> Array:
    scale = size / target
    reach = max(scale, 1.0)
    places = np.arange(size) + 0.5
    matrix = np.array([np.maximum(0.0, 1 - np.abs(places - (i + 0.5) * scale) / reach) for i in range(target)])
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def standardised(frames: list[Array]) -> Array:
    """Return frames with mean 0 and deviation 1 over the whole sequence."""
    values = np.stack(frames)
    return np.asarray((values - values.mean()) / values.std())


def logits(weights: dict[str, Array], frames: Array, valid: int, gaps: Array | None = None, patch: int = 0) -> Array:
    """Return the logits `[classes]` of one sequence `[frames, height, width, channels]` of `valid` frames."""
    features = []
    for frame in frames[:valid]:
        x = frame
        if patch:
            height, width, channels = x.shape
            cut = x.reshape(height // patch, patch, width // patch, patch, channels).transpose(0, 2, 1, 3, 4)
            patches = cut.reshape(height // patch, width // patch, -1)
            x = np.maximum(_convolved(patches, weights["stem/kernel"], weights["stem/bias"]), 0)
        for name in (name for name in weights if name.startswith("conv") and name.endswith("kernel")):
            x = _convolved(x, weights[name], weights[name.replace("kernel", "bias")])
            height, width = (side // 2 for side in x.shape[:2])
            x = np.maximum(x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).max((1, 3)), 0)
        features.append(np.maximum(x.ravel() @ weights["dense/kernel"] + weights["dense/bias"], 0))
    f = np.array(features) if gaps is None else np.column_stack([features, gaps[:valid]])
    sides = {name: _lstm(f[::step], weights, name)[::step] for name, step in (("forward", 1), ("backward", -1))}
    h = np.column_stack([states for states in sides.values() if states.size] or [np.empty((valid, 0))])
    if "attention" not in weights:
        last = np.concatenate([sides["forward"][-1], sides["backward"][0]]) if h.size else f.mean(axis=0)
        return np.asarray(last @ weights["logits/kernel"] + weights["logits/bias"])
    scores = f @ weights["spatial/kernel"] + weights["spatial/bias"]
    if h.size:
        share = _sigmoid(weights["mix"])
        scores = share * scores + (1 - share) * (h @ weights["temporal/kernel"] + weights["temporal/bias"])
    votes = np.exp(np.column_stack([f, h]) @ weights["attention"])
    return np.asarray((votes / votes.sum() * scores).sum(axis=0))


def _convolved(image: Array, kernel: Array, bias: Array) -> Array:
    height, width = image.shape[:2]
    before = [(size - 1) // 2 for size in kernel.shape[:2]]
    padded = np.pad(image, [*((b, size - 1 - b) for b, size in zip(before, kernel.shape, strict=False)), (0, 0)])
    parts = (
        padded[top : top + height, left : left + width] @ kernel[top, left]
        for top in range(kernel.shape[0])
        for left in range(kernel.shape[1])
    )
    return np.asarray(sum(parts) + bias)


def _lstm(features: Array, weights: dict[str, Array], name: str) -> Array:
    """Return the state after each frame, none without an LSTM of that direction."""
    if f"{name}/kernel" not in weights:
        return np.empty((len(features), 0))
    kernel, recurrent, bias = (weights[f"{name}/{part}"] for part in ("kernel", "recurrent", "bias"))
    h = c = np.zeros(len(recurrent))
    states = []
    for x in features:
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))
