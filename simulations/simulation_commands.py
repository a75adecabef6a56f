"""The commands of `python -m simulations`: scenarios, the paper's experiment, benchmarks, chaos, attacks and search."""

import argparse
import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_json, load_tensorflow, natural, path, positive, rate
from fedpp.config.hyperparameters import DTYPES, Dtype
from fedpp.config.run_config import LAYOUTS
from fedpp.errors import ConfigError
from fedpp.texts import printable

from .paper.paper_arguments import add_arguments

if TYPE_CHECKING:
    from .paper.paper_settings import Protocol


def add_list_scenarios_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `list`."""
    add_json(to)


def list_scenarios(*, as_json: bool) -> int:
    """Print the scenarios that come with the project."""
    from .scenario import Scenario, names

    scenarios = [Scenario.load(name) for name in names()]
    if as_json:
        print(json.dumps([{"name": s.name, "description": s.description} for s in scenarios]))
    else:
        for scenario in scenarios:
            print(f"{scenario.name:14} {scenario.description}")
    return 0


def add_run_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    to.add_argument("scenario", help="name from `list`, or a .yaml file")
    to.add_argument(
        "--data",
        type=path,
        help="folder of raw data: a folder for each hospital, or images that are divided among the sites by patient",
    )
    to.add_argument("--layout", choices=LAYOUTS, help="layout of the raw data (default: that of the scenario)")
    to.add_argument("--out", type=path, help="folder of the run (default: runs/NAME)")
    to.add_argument("--seed", type=natural, help="seed of the run (default: that of the scenario)")
    to.add_argument("--dtype", choices=DTYPES, help="floating point type (default: that of the scenario)")
    to.add_argument("--overwrite", action="store_true", help="replace an earlier run in the folder")
    add_json(to)


def run(
    *,
    scenario: str,
    data: Path | None,
    layout: str | None,
    out: Path | None,
    seed: int | None,
    dtype: Dtype | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Run a scenario and write its report."""
    from .scenario import Scenario

    chosen = Scenario.load(scenario).with_options(seed=seed, dtype=dtype, layout=layout)
    from fedpp.reporting.report_summary import summary

    from .runner import run as run_scenario

    folder = out or Path("runs") / chosen.name
    report = run_scenario(chosen, data, folder, overwrite=overwrite)
    print(json.dumps(report.to_mapping()) if as_json else summary(report))
    print(printable(f"report: {folder / 'report.html'}"), file=sys.stderr if as_json else sys.stdout)
    return 0


def add_phantom_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `phantom`."""
    to.add_argument("--out", type=path, required=True, help="new folder, with a folder for each hospital")
    to.add_argument("--hospitals", type=positive, default=1, help="number of hospitals (default: 1)")
    to.add_argument("--patients", type=positive, default=40, help="patients of each hospital (default: 40)")
    to.add_argument("--visits", type=positive, default=4, help="images of each patient (default: 4)")
    to.add_argument("--size", type=positive, default=64, help="height and width of an image in pixels (default: 64)")
    to.add_argument("--seed", type=natural, default=0, help="seed of the images (default: 0)")


def phantom(*, out: Path, hospitals: int, patients: int, visits: int, size: int, seed: int) -> int:
    """Write DICOM images of invented patients."""
    from .phantom import write_phantom

    if out.exists():
        raise ConfigError(f"{out} exists already: name a new folder")
    for folder in write_phantom(out, hospitals=hospitals, patients=patients, visits=visits, size=size, seed=seed):
        print(printable(str(folder)))
    return 0


def add_paper_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `paper`."""
    add_arguments(to)
    add_json(to)


def paper(
    *, data: Path, out: Path, resume: bool, overwrite: bool, protocol: "Protocol", as_json: bool, **settings: Any
) -> int:
    """Run the paper's experiment: three networks, in plaintext and on ciphertext, cross-validated by patient.

    `settings` are those that differ from the protocol, None where they were not given.
    """
    from .paper import paper_command
    from .paper.paper_settings import Settings

    record = paper_command.run(data, out, Settings.chosen(protocol, settings), resume=resume, overwrite=overwrite)
    print(json.dumps(record) if as_json else paper_command.summary(record))
    print(printable(f"page: {out / 'paper.html'}"), file=sys.stderr if as_json else sys.stdout)
    return 0


def add_bench_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench`."""
    names = ("step", "ingest", "drift", "vault", "mask", "rounds")
    to.add_argument("name", nargs="?", default="step", choices=names, help="benchmark (default: step)")
    to.add_argument("--data", type=path, help="drift: folder of labelled images (default: phantoms)")
    to.add_argument("--out", type=path, help="drift: folder for its chart")
    to.add_argument("--calls", type=positive, help="vault: calls of all clients together (default: 10000)")
    to.add_argument("--clients", type=positive, help="vault: clients at a time (default: 32)")
    to.add_argument("--values", type=positive, help="mask: values of an update (default: 1, 10 and 100 million)")
    to.add_argument("--megabytes", type=rate, nargs="+", help="rounds: megabytes of an update (default: 1 and 100)")
    to.add_argument("--rounds", type=positive, help="rounds: rounds of a run (default: 5)")
    to.add_argument("--turns", type=positive, help="rounds: runs of each side (default: 2)")
    to.add_argument("--senders", type=positive, nargs="+", help="rounds: simulated clients (default: 4, 16 and 64)")
    to.add_argument("--sent", type=rate, help="rounds: megabytes that each client sends (default: 50)")
    add_json(to)


def bench(*, name: str, as_json: bool, **options: Any) -> int:
    """Measure, and print figures; `options` are those of one benchmark, None where they were not given.

    The module of a benchmark, which has a function of its name, says what its ratios are of.
    """
    names = {"data": "drift", "out": "drift", "calls": "vault", "clients": "vault", "values": "mask"}
    names |= dict.fromkeys(("megabytes", "rounds", "turns", "senders", "sent"), "rounds")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if names[option] != name:
            raise ConfigError(f"--{option} is for bench {names[option]} alone: leave it out for bench {name}")
    if name not in {"vault", "mask", "rounds"}:
        load_tensorflow()
    result = getattr(import_module(f"{__package__}.benchmarks.bench_{name}"), name)(**given)
    if as_json:
        print(json.dumps(result))
        return 0
    for row in result["rows"]:
        print("  ".join(_shown(row)))
    return 0


def add_chaos_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `chaos`."""
    to.add_argument("case", nargs="*", help="proxy, kills, site, cut, slow, disk, poison, phases (default: all)")
    to.add_argument("--data", type=path, help="folder of raw data, divided among the sites (default: phantoms)")
    to.add_argument("--layout", choices=LAYOUTS, default="auto", help="layout of the raw data (default: auto)")
    to.add_argument(
        "--kills",
        type=positive,
        default=10,
        help="kills of each of the coordinator's programs; phases: of a vault and of the coordinator (default: 10)",
    )
    to.add_argument("--rounds", type=positive, default=6, help="rounds of each run (default: 6)")
    add_json(to)


def chaos(*, case: list[str], data: Path | None, layout: str, kills: int, rounds: int, as_json: bool) -> int:
    """Disturb whole deployments on this machine; return 1 if anything is not as designed."""
    from .chaos import chaos_command

    rows = []
    for row in chaos_command.run(case, data=data, layout=layout, kills=kills, rounds=rounds):
        rows.append(row)
        name, *figures = _shown(row)
        print(printable(f"{name}: {', '.join(figures)}"), file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        print(json.dumps({"name": "chaos", "rows": rows}))
    return 0 if all(row["as designed"] for row in rows) else 1


def _shown(row: Mapping[str, Any]) -> list[str]:
    """Return the case of a row, which stands first, and its figures with their names."""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}
    return [text if name == "case" else f"{name} {text}" for name, text in texts.items()]


def add_attack_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `attack`."""
    to.add_argument("name", nargs="*", help="attacks, as the page on threats names them (default: all)")
    to.add_argument("--short", action="store_true", help="fewer tries and connections, for a quick check")
    add_json(to)


def attack(*, name: list[str], short: bool, as_json: bool) -> int:
    """Attack masked runs; return 1 if an attack learns more than chance, or a control less than it should."""
    from .attacks import attack_command

    rows = []
    for row in attack_command.run(name, short=short):
        rows.append(row)
        print(attack_command.shown(row), file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        print(json.dumps({"name": "attack", "rows": rows}))
    return 0 if all(row["as designed"] for row in rows) else 1


def add_symbolic_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `symbolic`."""
    add_json(to)


def symbolic(*, as_json: bool) -> int:
    """Search for attacks on the protocol of rounds; return 1 if one is found, or if a control finds none."""
    from .symbolic import symbolic_command

    rows = []
    for row in symbolic_command.run():
        rows.append(row)
        print(symbolic_command.shown(row), file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        print(json.dumps({"name": "symbolic", "rows": rows}))
    else:
        print("\n".join(symbolic_command.notes()))
    return 0 if all(row["as designed"] for row in rows) else 1
