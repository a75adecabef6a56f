"""Command `python -m simulations chaos`: runs the cases, and yields a row for each result."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpp.config.run_config import RunConfig
from fedpp.errors import ConfigError, FedppError
from fedpp.texts import one_line
from simulations.hospitals import prepare
from simulations.scenario import PhantomData, Scenario

from . import phase_kills
from .chaos_cases import CASES, Row, Trial, row
from .cluster import cluster

ROUNDS = 6
PHASES = "phases"  # the case that needs no deployment
TRAINING = {  # small: training is not what is tested
    "epochs": 1,
    "batch_size": 4,
    "dtype": "float64",
    "architecture": "cnn",
    "filters": (4, 8),
    "dense": 8,
    "lstm": 8,
}


def run(
    cases: Sequence[str] = (),
    *,
    data: Path | None = None,
    layout: str = "auto",
    kills: int = 10,
    rounds: int = ROUNDS,
) -> Iterator[Row]:
    """Run the named cases (default: all) on phantom hospitals or on `data`; yield each row when it is known.

    A case that fails before its end is a row, too. Raises `ConfigError` for an unknown case.
    """
    known = (*CASES, PHASES)
    unknown = sorted(set(cases) - set(known))
    if unknown:
        raise ConfigError(f"unknown case {unknown[0]!r:.40}: known are {', '.join(known)}")
    for name in cases or known:
        size, sites = (8 if name == PHASES else 16), 4 if name in {"poison", PHASES} else 3
        scenario = Scenario.of(
            name="chaos",
            description="",
            sites=sites,
            rounds=rounds,
            phantom=None if data else PhantomData(patients=3 * size // 4, visits=2, size=2 * size),
            layout=layout,
            frames=2,
            size=size,
            **TRAINING,
        )
        with tempfile.TemporaryDirectory(prefix="fedpp-chaos-") as folder:
            try:
                yield from _case(name, Path(folder), scenario, data, kills)
            except (FedppError, subprocess.TimeoutExpired) as error:
                yield row(name, False, ended=one_line(str(error)))


def _case(name: str, folder: Path, scenario: Scenario, data: Path | None, kills: int) -> Iterator[Row]:
    config = RunConfig.of(**scenario.run.changed(seed=3).values(), card="", out=str(folder)).to_flower()
    settings = {
        name: value for name, value in config.items() if name not in {"card", "coordinator", "out", "initial-model"}
    }
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        hospitals = prepare(scenario, data, folder, Path(sockets))
        if name == PHASES:
            run = {**settings, "card": hospitals.domain.card().to_json(), "rounds": 1}
            with phase_kills.federation(folder, hospitals, run) as small:
                yield from phase_kills.phases(small, kills)
            return
        with cluster(folder, hospitals) as running:
            yield from CASES[name](Trial(running, settings, kills))
