"""What makes a site's training nothing: on its Python's path, `EncryptedTrainer.fit` returns at once.

Nothing of the approved bundle is changed; all else that a site does for a round it does.
"""

from typing import Any

from after_import import after_import  # type: ignore[import-not-found]  # beside which this folder is on the path


def idle(module: Any) -> None:
    """Replace the method that trains."""
    module.EncryptedTrainer.fit = lambda *_, **__: []


after_import("fedpp.learning.encrypted_training", idle)
