"""The vault's committed stubs, and the fields of its replies."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from fedpp.vault_api import vault_pb2

FOLDER = Path("fedpp", "vault_api")


def test_committed_stubs_are_what_the_proto_generates(tmp_path: Path):
    """The command in the proto file generates the committed files, byte for byte."""
    proto = (ROOT / FOLDER / "vault.proto").read_text()
    command = next(line for line in proto.splitlines() if "grpc_tools.protoc" in line).removeprefix("//").split()
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "vault.proto").write_text(proto)
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    generated = {file.name: file.read_text() for file in (tmp_path / FOLDER).glob("vault_pb2*")}
    committed = {file.name: file.read_text() for file in (ROOT / FOLDER).glob("vault_pb2*")}
    assert sorted(generated) == ["vault_pb2.py", "vault_pb2.pyi", "vault_pb2_grpc.py"]
    assert committed == generated, "make the stubs again, with the grpcio-tools of requirements.lock"


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("EvaluateReply", ["examples", "multi_label", "counts"]),
        ("Counts", ["examples", "loss_sum", "confusion", "positive_scores", "negative_scores"]),
        ("ArrayChunk", ["name", "dtype", "shape", "data"]),
    ],
)
def test_no_reply_has_a_field_for_a_single_sequence(message: str, fields: list[str]):
    """Evaluations are sums and counts; all other replies are facts, proofs, updates and states."""
    assert [field.name for field in getattr(vault_pb2, message).DESCRIPTOR.fields] == fields
    methods = vault_pb2.DESCRIPTOR.services_by_name["Vault"].methods
    assert {m.name: m.output_type.name for m in methods} == {
        "Info": "InfoReply",
        "InitialWeights": "ArrayChunk",
        "Sign": "SignReply",
        "Evaluate": "EvaluateReply",
    }
