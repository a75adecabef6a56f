"""Sealed stage: a run's newest state as one member gives it to another, by way of the coordinator.

The coordinator cannot read it. It also holds the chosen state, for as long as a round may follow that tests it. Whoever
unseals it checks both against certificates.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedpp import container
from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import MaskError
from fedpp.keys.sealed_state import StateSealer

FORMAT = "fedpp-sealed-stage-1"


@dataclass(frozen=True)
class SealedStage:
    """The content of a sealed stage."""

    stage: RunStage
    chosen: RunStage | None = None  # the stage of the chosen state, if it is another one

    def seal(self, sealer: StateSealer, about: str) -> Iterator[bytes]:
        """Yield the sealed bytes; `about` stays in clear."""
        parts = [each.to_bytes() for each in (self.stage, self.chosen) if each is not None]
        facts = {"sizes": [len(part) for part in parts]}
        return sealer.seal(about, (bytes(part) for part in container.parts(FORMAT, facts, *parts)))

    @classmethod
    def unseal(cls, sealer: StateSealer, sealed: Iterable[bytes]) -> "SealedStage":
        """Return what `seal` sealed; raise `MaskError` or `ModelError` for anything else."""
        _, records = sealer.unseal(sealed)
        try:
            facts, content = container.unpack(FORMAT, b"".join(records))
            stages = list(_parts(content, facts["sizes"]))
        except (ValueError, KeyError, TypeError):
            raise MaskError("not a sealed state of a run, or it was altered: fetch it again") from None
        return cls(*map(RunStage.from_bytes, stages))


def _parts(content: memoryview, sizes: list[int]) -> Iterator[memoryview]:
    """Yield one or two parts of these sizes; raise `ValueError` if they are not the whole."""
    if len(sizes) not in {1, 2} or sum(sizes) != len(content):
        raise ValueError
    yield content[: sizes[0]]
    if len(sizes) > 1:
        yield content[sizes[0] :]
