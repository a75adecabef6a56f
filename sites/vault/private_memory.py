"""Private memory of the vault: no core dump, no debugger of the same user, and no swap where the system allows it.

Root reads it all the same. `mlockall` is used only where no limit is set on locked memory: under a limit a later
allocation would fail.
"""

import ctypes
import resource

_SET_DUMPABLE = 4  # prctl(2)
_CURRENT, _FUTURE, _ON_FAULT = 1, 2, 4  # mlockall(2); on fault: a thread's stack is locked page by page, as it is used


def keep_private() -> bool:
    """Protect the memory of this process from now on; tell whether it is locked against swapping, too."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most != resource.RLIM_INFINITY:
        return False
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
    locked: bool = libc.mlockall(_CURRENT | _FUTURE | _ON_FAULT) == 0
    return locked
