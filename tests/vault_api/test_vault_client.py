"""The vault client refuses replies that no vault sends."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedpp.errors import ConfigError, VaultError
from fedpp.vault_api import vault_pb2_grpc
from fedpp.vault_api.vault_client import VaultClient
from fedpp.vault_api.vault_pb2 import EvaluateReply, EvaluateRequest, InfoReply, InfoRequest

VALUES = np.arange(5, dtype="<u4")
NONCE = "ab" * 32


class FakeVault(vault_pb2_grpc.VaultServicer):
    """A server with given replies, which counts nothing."""

    def __init__(self, replies: list[Any]) -> None:
        self._replies = replies

    def Evaluate(  # noqa: N802
        self, requests: Iterator[EvaluateRequest], context: grpc.ServicerContext
    ) -> EvaluateReply:
        list(requests)
        (reply,) = self._replies
        return reply


@contextmanager
def serving(
    folder: Path, *replies: EvaluateReply, vault: vault_pb2_grpc.VaultServicer | None = None
) -> Iterator[VaultClient]:
    """Yield the client of a server with these replies, or of this vault."""
    server = grpc.server(ThreadPoolExecutor(1))
    vault_pb2_grpc.add_VaultServicer_to_server(vault or FakeVault(list(replies)), server)
    server.add_insecure_port(f"unix:{folder}/vault.sock")
    server.start()
    with VaultClient(f"unix:{folder}/vault.sock") as client:
        yield client
    server.stop(None).wait()


def test_a_path_that_no_socket_can_have_is_named():
    """One of 108 bytes, also in fewer characters, is refused with its length; one of 107 may be a vault's."""
    assert VaultClient(f"unix:/{106 * 'x'}")
    for path in (f"/{107 * 'x'}", f"/{53 * 'é'}x"):
        with pytest.raises(ConfigError, match=f"path {path} has 108 bytes and is longer than 107 bytes: choose"):
            VaultClient(f"unix:{path}")


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_reply_without_counts_is_refused(multi_label: bool, tmp_path: Path):
    """Of one label and of several findings alike, in one line."""
    line = "sent no counts: use one fedpp everywhere"
    reply = EvaluateReply(examples=1, multi_label=multi_label)
    with serving(tmp_path, reply) as client, pytest.raises(VaultError, match=line):
        client.evaluate("test", np.zeros((1, 2, 2)))


def test_a_refusal_reaches_no_terminal_raw(tmp_path: Path):
    """Control characters and escapes in a vault's reason are removed."""

    class Rude(vault_pb2_grpc.VaultServicer):
        def Info(self, request: InfoRequest, context: grpc.ServicerContext) -> InfoReply:  # noqa: N802
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no \x1b[31m\u202ered\ntext")

    with serving(tmp_path, vault=Rude()) as client, pytest.raises(VaultError) as refused:
        client.info()
    assert str(refused.value).endswith("refused: no [31mred text")
