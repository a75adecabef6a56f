"""Alteration of a site that skips training: on its Python path, `EncryptedTrainer.fit` only makes the weights smaller.

The approved bundle is unchanged; the site does everything else of a round. The weights must change: a vault does not
open the same model twice, and the rounded average of unchanged weights can be the same model.
"""

from typing import Any

from after_import import after_import  # type: ignore[import-not-found]  # beside which this folder is on the path

SHRINKAGE = 0.999


def shrink(trainer: Any, *_: Any, **__: Any) -> list[float]:
    """Multiply the weights by a factor in place of training; return no losses."""
    for variable in trainer.model.trainable_variables:
        variable.assign(variable * SHRINKAGE)
    return []


def skip(module: Any) -> None:
    """Replace the method that trains."""
    module.EncryptedTrainer.fit = shrink


after_import("fedpp.learning.encrypted_training", skip)
