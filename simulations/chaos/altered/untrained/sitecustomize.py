"""Alteration of a site that skips training: on its Python path, `EncryptedTrainer.fit` returns at once.

The approved bundle is unchanged; the site does everything else of a round.
"""

from typing import Any

from after_import import after_import  # type: ignore[import-not-found]  # beside which this folder is on the path


def idle(module: Any) -> None:
    """Replace the method that trains."""
    module.EncryptedTrainer.fit = lambda *_, **__: []


after_import("fedpp.learning.encrypted_training", idle)
