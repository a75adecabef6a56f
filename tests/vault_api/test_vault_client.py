"""What the client makes of a vault that answers otherwise than a vault does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedpp.errors import VaultError
from fedpp.vault_api import vault_pb2_grpc
from fedpp.vault_api.vault_client import VaultClient
from fedpp.vault_api.vault_pb2 import MaskReply, MaskRequest, ScoreReply, ScoreRequest

WORDS = np.arange(5, dtype="<u4")
NONCE = "ab" * 32


class Answering(vault_pb2_grpc.VaultServicer):
    """A server that masks and counts nothing, and answers what it was given."""

    def __init__(self, replies: list[Any]) -> None:
        self._replies = replies

    def Mask(self, requests: Iterator[MaskRequest], context: grpc.ServicerContext) -> Iterator[MaskReply]:  # noqa: N802
        list(requests)
        yield from self._replies

    def Score(self, requests: Iterator[ScoreRequest], context: grpc.ServicerContext) -> ScoreReply:  # noqa: N802
        list(requests)
        (reply,) = self._replies
        return reply


@contextmanager
def asked(folder: Path, *replies: MaskReply | ScoreReply) -> Iterator[VaultClient]:
    """Yield the client of a server with these answers."""
    server = grpc.server(ThreadPoolExecutor(1))
    vault_pb2_grpc.add_VaultServicer_to_server(Answering(list(replies)), server)
    server.add_insecure_port(f"unix:{folder}/vault.sock")
    server.start()
    with VaultClient(f"unix:{folder}/vault.sock") as client:
        yield client
    server.stop(None).wait()


def test_words_come_with_nonce_and_tag(tmp_path: Path):
    """They are the last message's, as is the fewest sites of a sum."""
    with asked(tmp_path, MaskReply(words=WORDS.tobytes()), MaskReply(nonce=NONCE, tag="ff", least=3)) as client:
        masked = client.mask("{}", 1, WORDS)
    np.testing.assert_array_equal(masked.words, WORDS)
    assert (masked.nonce, masked.tag, masked.least) == (NONCE, 255, 3)


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ((), "without their nonce or tag: see its log, mask again"),
        ((MaskReply(nonce=NONCE),), "without their nonce or tag"),
        ((MaskReply(tag="1"),), "without their nonce or tag"),
        ((MaskReply(nonce=NONCE, tag="-1"),), "without their nonce or tag"),
        ((MaskReply(nonce=NONCE, tag="many"),), "without their nonce or tag"),
        ((MaskReply(words=b"more", nonce=NONCE, tag="1"),), "more words than it was asked for"),
    ],
)
def test_a_vault_that_ends_otherwise_is_refused(last: tuple[MaskReply, ...], line: str, tmp_path: Path):
    """Without a nonce and a tag that is a number, masked words are noise: one line says so."""
    with asked(tmp_path, MaskReply(words=WORDS.tobytes()), *last) as client, pytest.raises(VaultError, match=line):
        client.mask("{}", 1, WORDS)


@pytest.mark.parametrize("multi_label", [False, True])
def test_an_answer_without_counts_is_refused(multi_label: bool, tmp_path: Path):
    """Neither of one label nor of several findings can it be read: one line says so."""
    line = "answered no counts: use one fedpp everywhere"
    reply = ScoreReply(examples=1, multi_label=multi_label)
    with asked(tmp_path, reply) as client, pytest.raises(VaultError, match=line):
        client.score("test", np.zeros((1, 2, 2)))
