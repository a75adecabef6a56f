"""The vault's client: what the trainer may ask of the secret zone."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from fedpp.config.model_spec import Gaps, ModelSpec
from fedpp.config.run_config import Dtype
from fedpp.errors import ConfigError, FederationError, VaultError
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.membership import Proof
from fedpp.protocol.participants import Participants
from fedpp.values import is_hex, is_hex_number
from fedpp.vault_api import chunks, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_channel import channel_to

T = TypeVar("T")
EncodedUpdate = NDArray[np.unsignedinteger[Any]]  # little-endian, of 32 or 64 bits, one axis

SECONDS = 60.0  # to answer a call
TRANSFER_SECONDS = 600.0  # for calls that carry arrays
CONNECT_SECONDS = 5.0
HEALTH = "/grpc.health.v1.Health/Check"  # unlogged; whatever the answer, a vault is there
SEEDS = 2**64
ROUNDS = 2**32
CLAIMS = "fedpp-claims"  # metadata: what a caller says of itself, which over a Unix socket nobody checks


@dataclass(frozen=True)
class Membership:
    """What shows a vault that a run's sites are members: their proofs, and what these must be for."""

    participants: Participants
    run: str  # Flower's number
    bundle: str  # SHA-256 of the app bundle that runs here


@dataclass(frozen=True)
class Masked:
    """An update's words under a mask, and what of the mask is public."""

    words: EncodedUpdate
    nonce: str  # hex
    tag: int
    least: int  # fewest sites of a sum that the mask comes off in


@dataclass(frozen=True)
class SiteInfo:
    """Public facts about a vault's domain and dataset; counts are by split."""

    domain: str  # fingerprint of the domain's card
    dataset: str  # fingerprint of the manifest
    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    multi_label: bool
    gaps: Gaps
    patch: int
    sequences: dict[str, int]
    patients: dict[str, int]
    dtype: str
    card: str  # the domain's card, JSON
    site: str = ""  # public name of the vault's identity, if it has one


class VaultClient:
    """A connection to one vault; a call that fails is a `VaultError` of one line.

    Numbers that no message holds are a `ConfigError`, and counts that contradict each other a `FederationError`.
    """

    def __init__(self, address: str, tls: Path | None = None) -> None:
        """Prepare a connection to `unix:PATH`, or to `HOST:PORT` with a folder of certificates (`vault_channel`)."""
        self._address = address
        self._channel = channel_to(address, tls)
        self._claims = ((CLAIMS, f"uid {os.getuid()} pid {os.getpid()}"),)
        self._vault = vault_pb2_grpc.VaultStub(self._channel)

    def __enter__(self) -> Self:
        # Not grpc.channel_ready_future: the channel's end would wait 0.2 s for it, at each connection.
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(HEALTH)
        try:
            check(b"", timeout=CONNECT_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._channel.close()
                raise VaultError(
                    f"no vault answers at {self._address}: start it with `fedpp-site vault`, or check the address, "
                    "such as unix:/absolute/path.sock"
                ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def info(self) -> SiteInfo:
        """Return what is public about the domain and the dataset."""
        reply = self._call(lambda: self._vault.Info(vault_pb2.InfoRequest(), timeout=SECONDS, metadata=self._claims))
        return SiteInfo(
            reply.domain,
            reply.dataset,
            reply.frames,
            reply.height,
            reply.width,
            reply.channels,
            tuple(reply.classes),
            reply.multi_label,
            cast("Gaps", reply.gaps),
            reply.patch,
            dict(reply.sequences),
            dict(reply.patients),
            reply.dtype,
            reply.card,
            reply.site,
        )

    def initial_weights(self, network: ModelSpec, seed: int, dtype: Dtype) -> dict[str, NDArray[np.floating]]:
        """Return encrypted initial weights, rows `[*shape, n]` by name; raise `ConfigError` for a seed out of range."""
        if not 0 <= seed < SEEDS:
            raise ConfigError(f"a seed is a whole number from 0 to 2**64 - 1, got {seed}")
        request = vault_pb2.InitialWeightsRequest(network=network.to_json(), seed=seed, dtype=dtype)
        return self._call(
            lambda: dict(
                chunks.from_chunks(self._vault.InitialWeights(request, timeout=TRANSFER_SECONDS, metadata=self._claims))
            )
        )

    def sign(self, nonce: str, run: str, protocol: int, bundle: str) -> Proof:
        """Return the site's proof of membership, for the run of this nonce and number and the bundle of this hash."""
        if not 0 <= protocol < ROUNDS:
            raise ConfigError(f"a protocol's number is a whole number from 0 to 2**32 - 1, got {protocol}")
        request = vault_pb2.SignRequest(nonce=nonce, run=run, protocol=protocol, bundle=bundle)
        reply = self._call(lambda: self._vault.Sign(request, timeout=SECONDS, metadata=self._claims))
        try:
            return Proof.from_json(reply.proof)
        except FederationError as error:
            raise VaultError(f"the vault at {self._address} answered what is no proof: {error}") from None

    def score(self, split: str, logits: NDArray[np.floating], run: str = "", round: int = 0) -> AnyCounts:  # noqa: A002
        """Return the counts of encrypted logits, rows `[k, classes, n]` in the dataset's order of a split.

        `run` is Flower's number of the run, or nothing for a local training, whose epoch is the `round`.
        """
        if not 0 <= round < ROUNDS:
            raise ConfigError(f"a round is a whole number from 0 to 2**32 - 1, got {round}")

        def requests() -> Iterator[vault_pb2.ScoreRequest]:
            yield vault_pb2.ScoreRequest(split=split, run=run, round=round)
            for chunk in chunks.to_chunks("logits", logits):
                yield vault_pb2.ScoreRequest(logits=chunk)

        reply = self._call(lambda: self._vault.Score(requests(), timeout=TRANSFER_SECONDS, metadata=self._claims))
        if not reply.counts:
            raise VaultError(f"the vault at {self._address} answered no counts: use one fedpp everywhere")
        if reply.multi_label:
            return FindingCounts(reply.examples, tuple(map(_counts, reply.counts)))
        return _counts(reply.counts[0])

    def mask(self, of: str, examples: int, words: EncodedUpdate) -> Masked:
        """Return an update's words masked; `of` is the round, JSON."""

        def requests() -> Iterator[vault_pb2.MaskRequest]:
            yield vault_pb2.MaskRequest(round=of, examples=examples)
            for data in _blocks(words):
                yield vault_pb2.MaskRequest(words=data)

        def call() -> Masked:
            masked, last = _Filled(words), vault_pb2.MaskReply()
            for reply in self._vault.Mask(requests(), timeout=TRANSFER_SECONDS, metadata=self._claims):
                masked.take(reply.words)
                last = reply
            if not (is_hex(last.nonce) and is_hex_number(last.tag)):
                raise VaultError("the vault answered masked words without their nonce or tag: see its log, mask again")
            return Masked(masked.whole(), last.nonce, int(last.tag, 16), last.least)

        return self._call(call)

    def unmask(self, of: str, total: str, words: EncodedUpdate, membership: Membership) -> EncodedUpdate:
        """Return a sum's words without their masks; the round and what the sum is of are JSON."""

        def requests() -> Iterator[vault_pb2.UnmaskRequest]:
            proofs = [proof.to_json() for proof in membership.participants.proofs]
            yield vault_pb2.UnmaskRequest(
                round=of, sum=total, proofs=proofs, run=membership.run, bundle=membership.bundle
            )
            for data in _blocks(words):
                yield vault_pb2.UnmaskRequest(words=data)

        def call() -> EncodedUpdate:
            clear = _Filled(words)
            for reply in self._vault.Unmask(requests(), timeout=TRANSFER_SECONDS, metadata=self._claims):
                clear.take(reply.data)
            return clear.whole()

        return self._call(call)

    def seal(self, about: str, content: bytes) -> bytes:
        """Return bytes sealed for the domain, which say what they are about."""

        def requests() -> Iterator[vault_pb2.SealRequest]:
            yield vault_pb2.SealRequest(about=about)
            for start in range(0, len(content), chunks.CHUNK_BYTES):
                yield vault_pb2.SealRequest(data=content[start : start + chunks.CHUNK_BYTES])

        def call() -> bytes:
            sealed = BytesIO()  # a list is in memory twice while it is joined
            for reply in self._vault.Seal(requests(), timeout=TRANSFER_SECONDS, metadata=self._claims):
                sealed.write(reply.data)
            return sealed.getvalue()

        return self._call(call)

    def open(self, sealed: bytes) -> tuple[str, bytes]:
        """Return what sealed bytes are about, and their content."""

        def requests() -> Iterator[vault_pb2.Block]:
            for start in range(0, len(sealed), chunks.CHUNK_BYTES):
                yield vault_pb2.Block(data=sealed[start : start + chunks.CHUNK_BYTES])

        def call() -> tuple[str, bytes]:
            about, content = "", BytesIO()
            for reply in self._vault.Open(requests(), timeout=TRANSFER_SECONDS, metadata=self._claims):
                about = about or reply.about
                content.write(reply.data)
            return about, content.getvalue()

        return self._call(call)

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except grpc.RpcError as error:
            raise VaultError(self._reason(error)) from None

    def _reason(self, error: grpc.RpcError) -> str:
        code, details = error.code(), " ".join((error.details() or "").split())
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"the vault at {self._address} went away: start it again with `fedpp-site vault`"
        if code is grpc.StatusCode.CANCELLED:
            return f"the vault at {self._address} ended the call: it was stopped, or waited too long; see its log"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the vault at {self._address} did not answer in time: see its log"
        return f"the vault at {self._address} refused: {details or code.name}"


class _Filled:
    """Words like others, taken from a stream of bytes."""

    def __init__(self, like: EncodedUpdate) -> None:
        self._words, self._bytes = np.empty_like(like), 0

    def take(self, data: bytes) -> None:
        view = self._words.view(np.uint8)
        if self._bytes + len(data) > view.size:
            raise VaultError("the vault answered more words than it was asked for: use one fedpp everywhere")
        view[self._bytes : self._bytes + len(data)] = np.frombuffer(data, np.uint8)
        self._bytes += len(data)

    def whole(self) -> EncodedUpdate:
        if self._bytes != self._words.nbytes:
            raise VaultError("the vault answered fewer words than it was asked for: see its log")
        return self._words


def _blocks(words: EncodedUpdate) -> Iterator[bytes]:
    step = chunks.CHUNK_BYTES // words.itemsize
    for start in range(0, words.size, step):
        yield words[start : start + step].tobytes()


def _counts(message: vault_pb2.Counts) -> Counts:
    classes = round(len(message.confusion) ** 0.5)
    return Counts(
        message.examples,
        message.loss_sum,
        tuple(tuple(message.confusion[k * classes : (k + 1) * classes]) for k in range(classes)),
        tuple(message.positive_scores),
        tuple(message.negative_scores),
    )
