"""The vault: the one process of a hospital that holds the domain secret and answers the trainer.

It answers public facts, encrypted initial weights, and sums and counts of encrypted predictions. It decrypts
for nobody: no answer holds a label, a prediction or a value of a single sequence. Access is by the Unix
socket's permissions. No TensorFlow is loaded here.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.config import DTYPES, SPLITS, NetworkSpec
from fedpp.errors import ConfigError, DomainMismatchError, FedppError, VaultError
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.learning.initial import initial_weights
from fedpp.learning.metrics import count, softmax
from fedpp.protocol import chunks, vault_pb2, vault_pb2_grpc
from fedpp.protocol.counts import Counts

SCHEME = "unix:"
LONGEST_SOCKET_PATH = 107  # of a sockaddr_un
MOST_PARAMETERS = 50_000_000
GRACE_SECONDS = 5.0

_log = logging.getLogger("fedpp.vault")


def refusing(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Turn our own errors into a status with their one line; other errors give nothing away."""

    @wraps(handler)
    def call(self: "VaultService", request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return handler(self, request)
        except FedppError as error:
            _log.warning("%s refused: %s", handler.__name__, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            _log.error("%s failed: %s", handler.__name__, type(error).__name__)
            context.abort(grpc.StatusCode.INTERNAL, "the vault failed; its own log says where")

    return call


class VaultService(vault_pb2_grpc.VaultServicer):
    """Answers for one domain and one dataset."""

    def __init__(self, domain: KeyDomain, dataset: EncryptedDataset) -> None:
        if dataset.manifest.domain != domain.card().fingerprint:
            raise DomainMismatchError(
                f"the dataset belongs to domain {dataset.manifest.domain[:16]}, the vault's domain is "
                f"{domain.card().fingerprint[:16]}: serve the dataset that was ingested under this domain"
            )
        self._domain, self._dataset = domain, dataset

    @refusing
    def Info(self, request: vault_pb2.InfoRequest) -> vault_pb2.InfoReply:  # noqa: N802  gRPC's name
        """Answer what is public."""
        del request
        m = self._dataset.manifest
        records = {split: [s for s in m.sequences if s.split == split] for split in SPLITS}
        return vault_pb2.InfoReply(
            domain=m.domain,
            dataset=m.fingerprint,
            frames=m.frames,
            height=m.height,
            width=m.width,
            channels=m.channels,
            classes=m.classes,
            sequences={split: len(sequences) for split, sequences in records.items()},
            patients={split: len({s.patient for s in sequences}) for split, sequences in records.items()},
            dtype=m.dtype,
        )

    def InitialWeights(  # noqa: N802
        self, request: vault_pb2.InitialWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[vault_pb2.ArrayChunk]:
        """Stream encrypted initial weights."""
        rows = self._initial_weights(request, context)
        for name, array in rows.items():
            yield from chunks.to_chunks(name, array)

    @refusing
    def _initial_weights(self, request: vault_pb2.InitialWeightsRequest) -> dict[str, Any]:
        network, m = NetworkSpec.from_json(request.network), self._dataset.manifest
        task = (m.frames, m.height, m.width, m.channels, len(m.classes))
        asked = (network.frames, network.height, network.width, network.channels, network.classes)
        if asked != task:
            raise VaultError(
                f"the network is for {asked} (frames, height, width, channels, classes), the data are {task}"
            )
        if network.parameters() > MOST_PARAMETERS:
            raise VaultError(f"a network of {network.parameters()} parameters is too large: at most {MOST_PARAMETERS}")
        if request.dtype not in DTYPES:
            raise VaultError(f"rows are float32 or float64, got {request.dtype!r}")
        _log.info("InitialWeights: %d parameters", network.parameters())
        decoys = [initial_weights(network, secrets.randbits(63)) for _ in range(self._domain.n - 1)]
        message = initial_weights(network, request.seed)
        return encryption.encrypt_weights(self._domain, message, decoys, request.dtype)

    @refusing
    def Score(self, requests: Iterable[vault_pb2.ScoreRequest]) -> vault_pb2.ScoreReply:  # noqa: N802
        """Answer the counts of a split's predictions."""
        stream = iter(requests)
        split = next(stream, vault_pb2.ScoreRequest()).split
        if split not in SPLITS:
            raise VaultError(f"there is no split {split!r}: ask for one of {', '.join(SPLITS)}")
        arrays = dict(chunks.from_chunks(request.logits for request in stream))
        counts = self._count(split, arrays.get("logits", np.zeros(0)))
        _log.info("Score: %d sequences of split %s", counts.examples, split)
        return vault_pb2.ScoreReply(
            examples=counts.examples,
            loss_sum=counts.loss_sum,
            confusion=[cell for row in counts.confusion for cell in row],
            positive_scores=counts.positive_scores,
            negative_scores=counts.negative_scores,
        )

    def _count(self, split: str, logits: encryption.Values) -> Counts:
        indices = self._dataset.indices(split)
        classes = len(self._dataset.manifest.classes)
        expected = (len(indices), classes, self._domain.n)
        if logits.shape != expected:
            raise VaultError(f"logits of split {split} must be rows of shape {expected}, got {logits.shape}")
        labels = encryption.decrypt(self._domain, self._dataset.labels(indices))
        if not len(indices):
            return Counts.zero(classes)
        if np.abs(labels - np.eye(classes)[labels.argmax(axis=1)]).max() > 0.01:
            raise VaultError("the dataset's labels do not decrypt to classes: it is damaged, ingest it again")
        values = encryption.decrypt(self._domain, logits)
        if not np.isfinite(values).all():
            raise VaultError("the predictions are not finite: the training diverged; lower the learning rate")
        return count(labels.argmax(axis=1), softmax(values))


def serve(
    domain: KeyDomain,
    dataset: EncryptedDataset,
    address: str,
    *,
    ready: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> None:
    """Serve at `unix:PATH` until `stop` is set, or SIGTERM or SIGINT comes; the socket is removed then."""
    service, path = VaultService(domain, dataset), _socket_path(address)
    stopping = stop or threading.Event()
    if stop is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    vault_pb2_grpc.add_VaultServicer_to_server(service, server)
    others_out = os.umask(0o117)  # the socket is 0660 from its first moment
    try:
        server.add_insecure_port(address)
        os.umask(others_out)
        server.start()
        ready()
        stopping.wait()
    finally:
        server.stop(GRACE_SECONDS).wait()
        path.unlink(missing_ok=True)


def _socket_path(address: str) -> Path:
    """Return the path of a `unix:` address, free to be bound; its folder is made for a group if it is new."""
    path = Path(address.removeprefix(SCHEME))
    if not address.startswith(SCHEME) or not path.is_absolute():
        raise ConfigError(f"the vault's address must be unix:/absolute/path.sock, got {address!r}")
    if len(bytes(path)) > LONGEST_SOCKET_PATH:
        raise ConfigError(f"the socket's path {path} is longer than {LONGEST_SOCKET_PATH} bytes: choose a shorter one")
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()  # left by a vault that was killed
            else:
                raise VaultError(f"a vault is running at {address} already: stop it, or choose another address")
    elif path.exists():
        raise ConfigError(f"{path} is a file and no socket: choose another address")
    return path
