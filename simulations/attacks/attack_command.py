"""Command `python -m simulations attack`: tries each attack, then its control, and yields a row for each."""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError

from .attack import Attack, Off
from .attack_list import ATTACKS
from .scene.laboratory import Laboratory

Row = dict[str, Any]


def run(names: Sequence[str] = (), *, short: bool = False) -> Iterator[Row]:
    """Try the named attacks (default: all); yield each row when it is known.

    Raises `ConfigError` for an unknown name.
    """
    logging.getLogger("fedpp").addHandler(logging.NullHandler())  # refusals of the vaults that run in this process
    if unknown := sorted(set(names) - set(ATTACKS)):
        raise ConfigError(f"unknown attack {unknown[0]!r:.40}: known are {', '.join(ATTACKS)}")
    for name in names or ATTACKS:
        yield _row(name, ATTACKS[name], short=short)


def shown(row: Row) -> str:
    """Return a row as a line."""
    designed = "as designed" if row["as designed"] else "NOT AS DESIGNED"
    learned, control = f"learned {row['learned']:.4g}", f"control {row['control_learned']:.4g}"
    return (
        f"{row['attack']:20} {row['claim']:8} {learned} (chance {row['chance']:.4g}), {control} "
        f"(at least {row['threshold']:.4g}), {row['seconds']:.1f} s  {designed}"
    )


def _row(name: str, attack: Attack, *, short: bool) -> Row:
    started = time.perf_counter()
    learned = _learned(attack, nullcontext, short=short)
    control = _learned(attack, attack.off, short=short)
    return {
        "attack": name,
        "claim": attack.claim,
        "tried": attack.tried,
        "chance": attack.chance,
        "learned": learned,
        "threshold": attack.threshold,
        "control_learned": control,
        "seconds": time.perf_counter() - started,
        "as designed": learned <= attack.chance and control >= attack.threshold,
    }


def _learned(attack: Attack, off: Off, *, short: bool) -> float:
    with off(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedpp-attack-")))
        return attack.attempt(Laboratory(folder, short, stack))
