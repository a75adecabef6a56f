"""`python -m simulations chaos`: run the cases, and print what came of each."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError
from simulations.hospitals import prepare
from simulations.scenario import PhantomData, Scenario

from .cases import CASES, Trial
from .cluster import cluster

ROUNDS = 6
NETWORK = {"architecture": "cnn", "filters": (4, 8), "dense": 8, "lstm": 8}  # what is shaken is not the training


def run(
    cases: Sequence[str] = (), *, data: Path | None = None, layout: str = "auto", kills: int = 10, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Run the named cases, by default all, on phantom hospitals or on these data; return their rows."""
    unknown = sorted(set(cases) - set(CASES))
    if unknown:
        raise ConfigError(f"there is no case {unknown[0]!r:.40}: there are {', '.join(CASES)}")
    rows = []
    for name in cases or CASES:
        with tempfile.TemporaryDirectory(prefix="fedpp-chaos-") as folder:
            for made in _case(name, Path(folder), data, layout, kills=kills, rounds=rounds):
                print(f"{made['case']}: {'as designed' if made['as designed'] else 'NOT AS DESIGNED'}", file=sys.stderr)
                rows.append(made)
    return {"name": "chaos", "rows": rows}


def _case(name: str, folder: Path, data: Path | None, layout: str, *, kills: int, rounds: int) -> Any:
    scenario = Scenario(
        name="chaos",
        description="",
        sites=4 if name == "poison" else 3,
        rounds=rounds,
        phantom=None if data else PhantomData(patients=12, visits=2, size=32),
        layout=layout,
        frames=2,
        size=16,
        dtype="float64",
        epochs=1,
        batch_size=4,
        **NETWORK,  # type: ignore[arg-type]
    )
    settings: dict[str, str | int | float] = {
        "sites": scenario.sites,
        "rounds": rounds,
        "epochs": 1,
        "batch-size": 4,
        "seed": 3,
        "dtype": "float64",
        "architecture": scenario.architecture,
        "filters": ",".join(map(str, scenario.filters)),
        "dense": scenario.dense,
        "lstm": scenario.lstm,
    }
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        hospitals = prepare(scenario, data, folder, Path(sockets))
        with cluster(folder, hospitals) as running:
            yield from CASES[name](Trial(running, settings, kills))
