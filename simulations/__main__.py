"""`python -m simulations`: simulated federations and benchmarks on one machine."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fedpp.cli import Parser, load_tensorflow, natural, path, positive, rate, run_command
from fedpp.config.run_config import DTYPES, LAYOUTS
from fedpp.errors import ConfigError

from .paper.paper_arguments import add_arguments as add_paper_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    return run_command(_parser(), arguments)


def list_scenarios(options: argparse.Namespace) -> int:
    """Print the scenarios that come with the project."""
    from .scenario import Scenario, names

    scenarios = [Scenario.load(name) for name in names()]
    if options.json:
        print(json.dumps([{"name": s.name, "description": s.description} for s in scenarios]))
    else:
        for scenario in scenarios:
            print(f"{scenario.name:14} {scenario.description}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Run a scenario and write its report."""
    from .scenario import Scenario

    scenario = Scenario.load(options.scenario).with_options(
        seed=options.seed, dtype=options.dtype, layout=options.layout
    )
    from fedpp.reporting.report import summary

    from .runner import run as run_scenario

    report = run_scenario(
        scenario, options.data, options.out or Path("runs") / scenario.name, overwrite=options.overwrite
    )
    print(json.dumps(report.to_mapping()) if options.json else summary(report))
    print(
        f"report: {(options.out or Path('runs') / scenario.name) / 'report.html'}",
        file=sys.stderr if options.json else sys.stdout,
    )
    return 0


def paper(options: argparse.Namespace) -> int:
    """Run the paper's experiment: three networks, in plaintext and on ciphertext, cross-validated by patient."""
    from .paper import paper_command

    record = paper_command.run(options)
    print(json.dumps(record) if options.json else paper_command.summary(record))
    print(f"page: {options.out / 'paper.html'}", file=sys.stderr if options.json else sys.stdout)
    return 0


def bench(options: argparse.Namespace) -> int:
    """Measure, and print figures."""
    names = {"data": "drift", "out": "drift", "calls": "vault", "clients": "vault", "values": "mask"}
    names |= dict.fromkeys(("megabytes", "rounds", "turns", "senders", "sent"), "rounds")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    for name in given:
        if names[name] != options.name:
            raise ConfigError(f"--{name} is for bench {names[name]} alone: leave it out for bench {options.name}")
    if options.name not in {"vault", "mask", "rounds"}:
        load_tensorflow()
    from .benchmarks.benchmark_commands import measure

    result = measure(options.name, **given)
    if options.json:
        print(json.dumps(result))
        return 0
    for row in result["rows"]:
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("  ".join(text if k == "case" else f"{k} {text}" for k, text in zip(row, shown, strict=True)))
    return 0


def chaos(options: argparse.Namespace) -> int:
    """Shake whole deployments on this machine, and tell what came of it; exit with 1 if anything is not as designed."""
    from .chaos import chaos_command

    rows = []
    for row in chaos_command.run(
        options.case, data=options.data, layout=options.layout, kills=options.kills, rounds=options.rounds
    ):
        rows.append(row)
        shown = {name: f"{v:.4g}" if isinstance(v, float) else v for name, v in row.items() if name != "case"}
        line = f"{row['case']}: " + ", ".join(f"{name} {value}" for name, value in shown.items())
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"name": "chaos", "rows": rows}))
    return 0 if all(row["as designed"] for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listed = commands.add_parser("list", help=list_scenarios.__doc__, description=list_scenarios.__doc__)
    listed.set_defaults(run=list_scenarios)
    started = commands.add_parser("run", help=run.__doc__, description=run.__doc__)
    started.set_defaults(run=run)
    started.add_argument("scenario", help="a name from `list`, or a .yaml file")
    started.add_argument(
        "--data",
        type=path,
        help="folder of raw data: of each hospital in a folder of its own, or divided among the sites by patient",
    )
    started.add_argument("--layout", choices=LAYOUTS)
    started.add_argument("--out", type=path, help="folder of the run (default runs/NAME)")
    started.add_argument("--seed", type=natural)
    started.add_argument("--dtype", choices=DTYPES)
    started.add_argument("--overwrite", action="store_true", help="replace an earlier run in the folder")
    reproduced = commands.add_parser("paper", help=paper.__doc__, description=paper.__doc__)
    reproduced.set_defaults(run=paper)
    add_paper_arguments(reproduced)
    measured = commands.add_parser("bench", help=bench.__doc__, description=bench.__doc__)
    measured.set_defaults(run=bench)
    measured.add_argument(
        "name", nargs="?", default="step", choices=("step", "ingest", "drift", "vault", "mask", "rounds")
    )
    measured.add_argument("--data", type=path, help="drift: folder of labelled images, in place of a phantom's")
    measured.add_argument("--out", type=path, help="drift: folder for its chart")
    measured.add_argument("--calls", type=positive, help="vault: of all clients together (default 10000)")
    measured.add_argument("--clients", type=positive, help="vault: at a time (default 32)")
    measured.add_argument("--values", type=positive, help="mask: values of an update (default 1, 10 and 100 million)")
    measured.add_argument("--megabytes", type=rate, nargs="+", help="rounds: of an update (default 1 and 100)")
    measured.add_argument("--rounds", type=positive, help="rounds: of a run (default 5)")
    measured.add_argument("--turns", type=positive, help="rounds: runs of each side (default 2)")
    measured.add_argument("--senders", type=positive, nargs="+", help="rounds: simulated sites (default 4, 16 and 64)")
    measured.add_argument("--sent", type=rate, help="rounds: megabytes that each of them sends (default 50)")
    shaken = commands.add_parser("chaos", help=chaos.__doc__, description=chaos.__doc__)
    shaken.set_defaults(run=chaos)
    shaken.add_argument("case", nargs="*", help="proxy, kills, site, cut, slow, disk, poison (default: all)")
    shaken.add_argument("--data", type=path, help="folder of raw data, in place of phantoms, divided among the sites")
    shaken.add_argument("--layout", choices=LAYOUTS, default="auto")
    shaken.add_argument("--kills", type=positive, default=10, help="of the coordinator's programs, each (default 10)")
    shaken.add_argument("--rounds", type=positive, default=6, help="of each run (default 6)")
    for command in (listed, started, reproduced, measured, shaken):
        command.add_argument("--json", action="store_true", help="print one JSON value")
    return parser


if __name__ == "__main__":
    sys.exit(main())
