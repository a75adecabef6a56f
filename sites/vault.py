"""The vault: the one process of a hospital that holds the domain secret and answers the trainer.

It answers public facts, encrypted initial weights, and sums and counts of encrypted predictions. Whoever chooses
the predictions reads labels, and any row of the domain, from those sums (docs/threats.md): access to the socket
is read access, and the socket's permissions decide who has it.
No TensorFlow is loaded here.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.config import DTYPES, SPLITS
from fedpp.errors import ConfigError, DomainMismatchError, FedppError, VaultError
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.learning.initial import encrypted_initial_weights
from fedpp.learning.metrics import count, count_findings, presence, softmax
from fedpp.network import MOST_PARAMETERS, NetworkSpec, Task
from fedpp.protocol import chunks, vault_pb2, vault_pb2_grpc
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts

SCHEME = "unix:"
LONGEST_SOCKET_PATH = 107  # of a sockaddr_un
GRACE_SECONDS = 5.0
PROBE_SECONDS = 2.0

_log = logging.getLogger("fedpp.vault")


@contextmanager
def answering(method: str, context: grpc.ServicerContext) -> Iterator[None]:
    """Answer our own errors with their one line; of any other error the caller learns only that it happened."""
    # gRPC ends a call that raises with the status set here, in place of the exception's text, and logs the rest.
    context.set_code(grpc.StatusCode.INTERNAL)
    context.set_details("the vault failed: its own log says where")
    try:
        yield
    except FedppError as error:
        _log.warning("%s refused: %s", method, error)
        asked_wrongly = isinstance(error, ConfigError | VaultError)
        code = grpc.StatusCode.INVALID_ARGUMENT if asked_wrongly else grpc.StatusCode.FAILED_PRECONDITION
        context.abort(code, str(error))
    context.set_code(grpc.StatusCode.OK)
    context.set_details("")


class VaultService(vault_pb2_grpc.VaultServicer):
    """Answers for one domain and one dataset."""

    def __init__(self, domain: KeyDomain, dataset: EncryptedDataset) -> None:
        if dataset.manifest.domain != domain.card().fingerprint:
            raise DomainMismatchError(
                f"the dataset belongs to domain {dataset.manifest.domain[:16]}, the vault's domain is "
                f"{domain.card().fingerprint[:16]}: serve the dataset that was ingested under this domain"
            )
        self._domain, self._dataset = domain, dataset

    def Info(  # noqa: N802  gRPC's name
        self, request: vault_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> vault_pb2.InfoReply:
        """Answer what is public."""
        del request
        with answering("Info", context):
            m = self._dataset.manifest
            _log.info("Info: %d sequences", len(self._dataset))
            return vault_pb2.InfoReply(
                domain=m.domain,
                dataset=m.fingerprint,
                frames=m.frames,
                height=m.height,
                width=m.width,
                channels=m.channels,
                classes=m.classes,
                gaps=m.gaps,
                multi_label=m.multi_label,
                patch=m.patch,
                sequences=self._dataset.counts(),
                patients=self._dataset.patients(),
                dtype=m.dtype,
                card=self._domain.card().to_json(),
            )

    def InitialWeights(  # noqa: N802
        self, request: vault_pb2.InitialWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[vault_pb2.ArrayChunk]:
        """Stream encrypted initial weights."""
        with answering("InitialWeights", context):
            network = self._fitting(NetworkSpec.from_json(request.network))
            if request.dtype not in DTYPES:
                raise VaultError(f"rows are float32 or float64, got {request.dtype!r}")
            _log.info("InitialWeights: %d parameters", network.parameters())
            seed = self._domain.initial_seed(request.seed)
            rows = encrypted_initial_weights(network, seed, self._domain.computing_key())
            for name, array in rows.items():
                yield from chunks.to_chunks(name, array.astype(request.dtype))

    def Score(  # noqa: N802
        self, requests: Iterator[vault_pb2.ScoreRequest], context: grpc.ServicerContext
    ) -> vault_pb2.ScoreReply:
        """Answer the counts of a split's predictions."""
        with answering("Score", context):
            split = next(requests, vault_pb2.ScoreRequest()).split
            if split not in SPLITS:
                raise VaultError(f"there is no split {split!r}: ask for one of {', '.join(SPLITS)}")
            counts = self._count(split, (request.logits for request in requests))
            _log.info("Score: %d sequences of split %s", counts.examples, split)
            several = isinstance(counts, FindingCounts)
            of_each = counts.findings if isinstance(counts, FindingCounts) else (counts,)
            return vault_pb2.ScoreReply(
                examples=counts.examples, multi_label=several, counts=[_message(counts) for counts in of_each]
            )

    def _fitting(self, network: NetworkSpec) -> NetworkSpec:
        if misfit := network.misfit(Task.of(self._dataset.manifest)):
            raise VaultError(misfit)
        if network.parameters() > MOST_PARAMETERS:
            raise VaultError(f"a network of {network.parameters()} parameters is too large: at most {MOST_PARAMETERS}")
        return network

    def _count(self, split: str, stream: Iterator[vault_pb2.ArrayChunk]) -> AnyCounts:
        labels = self._labels(split)
        classes = len(self._dataset.manifest.classes)
        expected = (len(labels), classes, self._domain.n)
        header = next(stream, vault_pb2.ArrayChunk())
        if tuple(header.shape) != expected:  # before any data are taken in
            raise VaultError(
                f"logits of split {split} must be rows of shape {expected}, got {tuple(header.shape)}: "
                "predict the dataset that this vault serves"
            )
        arrays = chunks.from_chunks(chain([header], stream))
        _, rows = next(arrays)
        if next(arrays, None) is not None:
            raise VaultError("one array of logits is scored at a time, got more")
        with np.errstate(over="ignore", invalid="ignore"):
            logits = encryption.decrypt(self._domain, rows)
        if not np.isfinite(logits).all():
            raise VaultError("the predictions are not finite: the training diverged; lower the learning rate")
        if self._dataset.manifest.multi_label:
            return count_findings(labels, presence(logits))
        return count(labels, softmax(logits))

    def _labels(self, split: str) -> NDArray[np.int64]:
        """Return class numbers `[k]`, or findings' states `[k, findings]`."""
        rows = self._dataset.labels(self._dataset.indices(split))
        if self._dataset.manifest.multi_label:
            return encryption.decrypt_findings(self._domain, rows)
        return encryption.decrypt_classes(self._domain, rows)


def _message(counts: Counts) -> vault_pb2.Counts:
    return vault_pb2.Counts(
        examples=counts.examples,
        loss_sum=counts.loss_sum,
        confusion=[cell for row in counts.confusion for cell in row],
        positive_scores=counts.positive_scores,
        negative_scores=counts.negative_scores,
    )


def serve(
    domain: KeyDomain,
    dataset: EncryptedDataset,
    address: str,
    *,
    ready: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> None:
    """Serve at `unix:PATH` until `stop` is set, or SIGTERM or SIGINT comes; the socket is removed then.

    Every byte of the dataset is read before: raises `DatasetError` that names a damaged shard.
    """
    service = VaultService(domain, dataset)
    dataset.verify()
    path = _socket_path(address)
    stopping = stop or threading.Event()
    if stop is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    vault_pb2_grpc.add_VaultServicer_to_server(service, server)
    _bind(server, path)
    server.start()
    try:
        ready()
        stopping.wait()
    finally:  # gRPC removes the socket before it waits for running calls: at the end it may be the next vault's
        server.stop(GRACE_SECONDS).wait()


def _bind(server: grpc.Server, path: Path) -> None:
    others_out = os.umask(0o117)  # the socket is 0660 from its first moment
    try:
        server.add_insecure_port(f"{SCHEME}{path}")
    except RuntimeError:
        raise VaultError(f"cannot make a socket at {path}: check that its folder may be written to") from None
    finally:
        os.umask(others_out)


def _socket_path(address: str) -> Path:
    """Return the path of a `unix:` address, free to be bound; its folder is made for a group if it is new."""
    path = Path(address.removeprefix(SCHEME))
    if not address.startswith(SCHEME) or not path.is_absolute():
        raise ConfigError(f"the vault's address must be unix:/absolute/path.sock, got {address!r}")
    if len(bytes(path)) > LONGEST_SOCKET_PATH:
        raise ConfigError(f"the socket's path {path} is longer than {LONGEST_SOCKET_PATH} bytes: choose a shorter one")
    if any(character in address for character in "%?#"):  # gRPC reads the address as a URI
        raise ConfigError(f"the socket's path must have no %, ? or #, got {path}: choose another")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the socket's folder {path.parent}: {error.strerror}") from None
    if path.is_socket():
        _remove_stale(path)
    elif path.exists():
        raise ConfigError(f"{path} is a file and no socket: choose another address")
    return path


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # left by a vault that was killed
            path.unlink()
        except OSError as error:
            raise VaultError(f"{path} may belong to a running vault ({error}): choose another address") from None
        else:
            raise VaultError(f"a vault is running at {SCHEME}{path} already: stop it, or choose another address")
