"""A vault's memory is not dumped, not open to debuggers of its user, and locked where the system allows it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from unprivileged import NOBODY
from vaults import site_vault

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.key_domain import KeyDomain

CODE = """
import ctypes, resource
from pathlib import Path
from sites.vault.private_memory import keep_private
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
locked = keep_private()
limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY
kib = int(Path("/proc/self/status").read_text().partition("VmLck:")[2].split()[0])
assert locked == (kib > 0)
assert not (limited and locked)
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_private_process_is_not_dumped():
    """It is not dumpable any more, its core files have no bytes, and it says whether its memory is locked."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1 0 (0, 0)\n"


@pytest.mark.parametrize("private", [False, True])
def test_a_process_of_the_same_user_cannot_look_into_it(*, private: bool):
    """Environment and memory are closed to it; without the protection the environment is open."""
    # Root may read everything.
    other: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    code = "from sites.vault.private_memory import keep_private\n" + private * "keep_private()\n" + "print()\ninput()"
    look = "import sys\nopen(sys.argv[1], 'rb').read(1)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, **other, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        for name in ("environ", "mem") if private else ("environ",):  # a kernel may close `mem` by itself
            command = [sys.executable, "-c", look, f"/proc/{process.pid}/{name}"]
            done = subprocess.run(command, **other, capture_output=True, text=True, check=False)
            assert ("PermissionError" in done.stderr) is private, done.stderr
        process.communicate(b"\n")


def test_a_vault_is_private(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The command makes its process private before it serves."""
    with site_vault(domain, dataset, address) as process:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert limits.partition("Max core file size")[2].split()[:2] == ["0", "0"]
