"""A vault's memory is not dumped, not open to debuggers of its user, and locked where the system allows it."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT
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


def test_a_vault_is_private(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The command makes its process private before it serves."""
    with site_vault(domain, dataset, address) as process:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert limits.partition("Max core file size")[2].split()[:2] == ["0", "0"]
