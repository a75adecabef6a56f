"""Commands `run`, `status` and `stop`: a federation from its settings to its test metrics."""

import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.config.run_config import RunConfig
from fedpp.errors import ConfigError, FederationError
from fedpp.files import replace
from fedpp.protocol.run_record import CLEAR, RECORD, SEALED
from fedpp.settings_file import load_settings
from fedpp.texts import printable_lines
from fedpp.values import is_hex

from .bundle_build import CHECKOUT, copy_sources
from .flower_command import flower
from .superlink import CONNECTION, State

if TYPE_CHECKING:
    from coordinator.server.progress import Progress
    from coordinator.server.run_state import CohortChange, RunState

ARGUMENTS = ("domain", "sites", "out", "model")  # in a file of settings, instead of on the command line
CHANGEABLE = ("quorum", "retries", "wait-seconds", "round-seconds")  # in a resumed run
IN_CLEAR = ("rounds",)  # likewise, where no contract states it
WATCH_SECONDS, NODES_SECONDS = 1.0, 15.0
Settings = dict[str, str | int | float]


def run(
    state: State,
    given: Mapping[str, Any],
    texts: Sequence[str],
    *,
    resume: bool,
    without: Sequence[str] = (),
    lifted: Sequence[str] = (),
    burns: Sequence[Path] = (),
    joining: Sequence[str] = (),
    nonce: str | None = None,
    as_json: bool,
) -> int:
    """Run one federation on this checkout's code, wait for it, and print the final test metrics.

    `given` are the settings of a file and of the command line, `texts` further ones as name=value; a resumed masked run
    continues `without` these sites, some of whose locks were `lifted`, or whose `burns` are in files, and with the
    `joining` ones. With its `nonce`, a run whose folder was lost is resumed from what the vaults know.
    """
    from coordinator.server.run_state import CohortChange, RunState  # with NumPy, for which --help must not wait

    change = CohortChange(tuple(without), tuple(joining), tuple(lifted))
    out = Path(given.get("out") or _missing("--out FOLDER")).resolve()
    folder = RunState(out)
    _require_resuming(_options(change, burns, nonce), out, resume=resume)
    if resume and (out / RECORD).exists():
        return _show(out, as_json=as_json)
    if resume and folder.configuration.exists():
        settings = _resumed(folder, texts, given)
    else:
        settings = _started(folder, texts, given)
    _prepare(folder, change, burns, nonce)
    if not folder.is_held():
        folder.clear()
    replace(state.last, str(out).encode())
    from .submission import Submission

    try:
        ended = Submission(state, folder, settings).carry_out()
    except FederationError:
        if not folder.was_started():
            shutil.rmtree(folder.folder)  # fit for the next try
        raise
    if ended.phase != "completed":
        if ended.phase == "stopped":
            raise FederationError(f"the run was stopped; resume it with `{_resuming(state, out)}`")
        raise FederationError(f"the run failed: {ended.reason}")
    return _show(out, as_json=as_json)


def _require_resuming(options: Sequence[str], out: Path, *, resume: bool) -> None:
    """Raise `ConfigError` for options of resumed runs with a run that is new, or has ended."""
    if options and not resume:
        raise ConfigError(f"{options[0]} is for a run that is resumed: add --resume")
    if options and (out / RECORD).exists():
        raise ConfigError(f"the run in {out} has ended, and its sites stay as they are: start another one")


def plan_change(folder: "RunState", change: "CohortChange", burns: Sequence[Path]) -> None:
    """Record which sites leave or join a masked run; raise a `FedppError` unless it is one that can be resumed."""
    from coordinator.server.masked import run_revision
    from coordinator.server.masked.abandonment import GivenUp
    from coordinator.server.masked.statement_store import CohortFile

    if set(change.lifted) - set(change.leaving) or (burns and not change.leaving):
        raise ConfigError("--lifted and --burn are about sites of --without: name them there, with --resume")
    cohort = CohortFile(folder).load() if folder.was_started() else None
    option = _options(change, burns, None)[0]
    if cohort is None:
        raise ConfigError(
            f"{option} changes the sites of a masked run that --resume continues: there is none in {folder.out}"
        )
    if folder.is_held():
        raise ConfigError(f"{option} changes a run that is not in progress: stop the run in {folder.out} first")
    begun = run_revision.started(folder, cohort, 0.0)
    if unknown := sorted(set(change.leaving) - set(begun.contract.names)):
        raise ConfigError(
            f"--without names sites of the run, got {unknown[0]!r:.80}: they are {', '.join(begun.contract.names)}"
        )
    for path in burns:
        try:
            run_revision.take_burn(folder, begun, path.read_text(), change.leaving)
        except (OSError, UnicodeDecodeError, FederationError) as error:
            raise ConfigError(f"--burn {path}: {error.strerror if isinstance(error, OSError) else error}") from None
    run_revision.require_unlocked(folder, begun, change.leaving, change.lifted)
    if begun.contract.digest != cohort.contract.digest:
        GivenUp(folder).add(cohort.contract)
    folder.plan(dataclasses.replace(change, contract=begun.contract.digest))


def _options(change: "CohortChange", burns: Sequence[Path], nonce: str | None) -> list[str]:
    """Return the options that are for resumed runs alone."""
    named = {"without": change.leaving, "with": change.joining, "burn": burns, "lifted": change.lifted}
    given = [f"--{option} {value}" for option, values in named.items() for value in values]
    return [*given, *(["--nonce"] if nonce else [])]


def _prepare(folder: "RunState", change: "CohortChange", burns: Sequence[Path], nonce: str | None) -> None:
    """Record what else than the settings a resumed run is given."""
    if nonce:
        _rebuild(folder, nonce)
    if change or burns:
        plan_change(folder, change, burns)


def _rebuild(folder: "RunState", nonce: str) -> None:
    """Let a run whose folder was lost continue in this one; raise `ConfigError` for a folder that has a run."""
    if (folder.folder / "contract").exists() or (folder.was_started() and not folder.is_rebuilding()):
        raise ConfigError(f"{folder.out} holds a run, and --nonce is for one whose folder was lost: leave out --nonce")
    folder.rebuild(nonce)


def _resuming(state: State, out: Path) -> str:
    """Return the command that resumes a run."""
    return f"python -m coordinator run {shlex.join(['--state', str(state.folder), '--out', str(out)])} --resume"


def status(state: State, out: Path | None, *, as_json: bool) -> int:
    """Show the progress of a run, its sites and the enrolled sites' connections; live on a terminal."""
    from coordinator.server.progress import Progress
    from coordinator.server.run_state import RunState

    folder = RunState(_out(out, state))
    nodes, queried = [], -NODES_SECONDS
    while True:
        if time.monotonic() - queried >= NODES_SECONDS:
            nodes, queried = _nodes(state), time.monotonic()
        progress = Progress.load(folder.progress)
        is_running = folder.is_held()
        if as_json:
            print(json.dumps({**progress.to_mapping(), "out": str(folder.out), "running": is_running, "nodes": nodes}))
            return 0
        lines = _lines(progress, nodes, folder, is_running=is_running)
        live = sys.stdout.isatty() and not progress.ended
        print(("\x1b[H\x1b[2J" if live else "") + printable_lines("\n".join(lines)), flush=True)
        if not live:
            return 0
        time.sleep(WATCH_SECONDS)


def stop(state: State, out: Path | None) -> int:
    """Stop the current run; `run --resume` resumes it."""
    from coordinator.server.run_state import RunState

    folder = RunState(_out(out, state))
    if not folder.is_held():
        raise FederationError(f"no run is in progress in {folder.out}: `status` shows whether and how it ended")
    folder.stop.touch()
    print(f"stopping the run; resume it with `{_resuming(state, folder.out)}`", file=sys.stderr)
    while folder.is_held():
        time.sleep(WATCH_SECONDS)
    return 0


def _started(folder: "RunState", texts: Sequence[str], given: Mapping[str, Any]) -> Settings:
    """Return the settings of a new run, checked as far as possible before it starts."""
    from coordinator.server import initial_model
    from fedpp.cipher.domain_card import DomainCard

    out = folder.out
    if folder.configuration.exists() or any((out / name).exists() for name in (RECORD, SEALED, CLEAR)):
        raise ConfigError(
            f"{out} holds a federation already: choose another --out, results are not overwritten, or resume "
            "the run with --resume"
        )
    domain = Path(given.get("domain") or _missing("--domain CARD"))
    model, card = str(given.get("model") or ""), DomainCard.load(domain)
    if model and not is_hex(model):
        model = str(Path(model).resolve())
        initial_model.read(Path(model), card.fingerprint)  # a file that cannot be read must not cost a wait for sites
    facts: Settings = {
        "card": card.to_json(),
        "coordinator": "",  # as it is when a ServerApp is submitted
        "sites": given.get("sites") or _missing("--sites NUMBER"),
        "out": str(out),
        "initial-model": model,
    }
    written = {name: value for name, value in given.items() if name not in ARGUMENTS}
    settings = run_config(texts, facts, written)
    config = RunConfig.from_mapping(settings)
    if config.strategy:
        from coordinator.server.chosen_strategy import ChosenStrategy

        ChosenStrategy.of(config, card.scheme)
    folder.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()  # a folder that cannot be written to must not cost a training
    shutil.rmtree(folder.app, ignore_errors=True)
    copy_sources(folder.app)
    replace(folder.configuration, json.dumps(settings).encode())
    return settings


def _resumed(folder: "RunState", texts: Sequence[str], given: Mapping[str, Any]) -> Settings:
    """Return the settings of a resumed run, with the permitted changes."""
    try:
        before: Settings = json.loads(folder.configuration.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {folder.configuration}: {error}; start a new run, with --model") from None
    before["coordinator"] = ""
    facts = {name: before.pop(name) for name in ("card", "coordinator", "sites", "out", "initial-model")}
    written = {name: value for name, value in given.items() if name not in ARGUMENTS}
    settings = run_config(texts, facts, before | written)
    before |= facts
    changeable = CHANGEABLE if before["secure-aggregation"] else (*IN_CLEAR, *CHANGEABLE)
    changed = [name for name in settings if settings[name] != before[name] and name not in changeable]
    if changed:
        raise ConfigError(
            f"a resumed run may change only {', '.join(changeable)}; {changed[0]} was {before[changed[0]]!r}, "
            f"got {settings[changed[0]]!r}: start a new run, with --model"
        )
    replace(folder.configuration, json.dumps(settings).encode())
    return settings


def run_config(
    texts: Sequence[str], given: Mapping[str, str | int | float], written: Mapping[str, Any] = {}
) -> Settings:
    """Return all settings of a run: the defaults, then those `written` in a file, `name=value` texts, and `given`.

    Texts are typed like their defaults. Raises `ConfigError` for names that are unknown, given or twice there, and for
    values that do not fit.
    """
    defaults = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    known = ", ".join(sorted(set(defaults) - set(given)))
    settings: Settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in defaults or name in given:
            raise ConfigError(f"--set takes name=value with a name of {known}; got {text!r}")
        if name in settings:
            raise ConfigError(f"--set {name} is given twice: give it once")
        settings[name] = _typed(name, value, type(defaults[name]))
    unknown = sorted(set(written) - (set(defaults) - set(given)))
    if unknown:
        raise ConfigError(f"there is no setting {unknown[0]!r:.80}: known are {', '.join(ARGUMENTS)}, {known}")
    made = {**defaults, **written, **settings, **given}
    RunConfig.from_mapping(made)
    return made


def _typed(name: str, text: str, kind: type) -> str | int | float:
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    try:
        if kind is bool:
            return ("false", "true").index(text) == 1
        made: str | int | float = kind(text)
    except ValueError:
        raise ConfigError(f"run setting {name} must be {wanted}, got {text!r:.80}") from None
    return made


def settings_of_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; raise `ConfigError` unless it is a mapping of plain values."""
    values = load_settings(path, "run configuration")
    if not all(isinstance(value, (str, int, float)) for value in values.values()):
        raise ConfigError(f"{path} must hold one setting a line, `name: value`, with texts, numbers, true or false")
    return values


def _missing(what: str) -> Any:
    raise ConfigError(f"{what} is needed, on the command line or in the file of settings")


def _show(out: Path, *, as_json: bool) -> int:
    """Print the figures of a finished run's test."""
    from fedpp.learning.assessment import of_task, together
    from fedpp.protocol.run_record import FederationRecord

    record = FederationRecord.load(out / RECORD)
    task, patients = record.sites[0].task, sum(site.patients[-1] for site in record.sites)
    assessed = of_task(record.test_counts(), task, patients)
    if as_json:
        print(json.dumps(together(assessed) if task.multi_label else assessed[0].to_mapping()))
    else:
        print("\n".join(line for of_one in assessed for line in of_one.lines()))
    return 0


def _out(out: Path | None, state: State) -> Path:
    """Return the results folder of the named run, by default the last one of this coordinator."""
    if out is not None:
        return out.resolve()
    try:
        return Path(state.last.read_text())
    except OSError:
        raise FederationError(f"{state.folder} has no run: start one with `run`, or name its --out") from None


def _nodes(state: State) -> list[dict[str, str]]:
    """Return name and status of the enrolled sites' nodes; none while SuperLink does not answer."""
    with suppress(FederationError):
        listed = flower(state, "supernode", "list", CONNECTION)["nodes"]
        return [{"name": node.get("name") or str(node["node-id"]), "status": node["status"]} for node in listed]
    return []


def _lines(
    progress: "Progress", nodes: Sequence[Mapping[str, str]], folder: "RunState", *, is_running: bool
) -> list[str]:
    """Return the lines that show a run."""
    crashed = (
        "" if is_running or progress.ended else " (no ServerApp runs: `run` starts one; if it has ended, run --resume)"
    )
    lines = [f"run      {folder.out}", f"state    {progress.phase}{crashed}"]
    if progress.round:
        attempt = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
        lines.append(f"round    {min(progress.round, progress.rounds)} of {progress.rounds}{attempt}")
    lines += [f"site     {name}: {status}" for name, status in progress.sites.items()]
    awaited = progress.awaited
    if awaited and progress.deadline:
        lines.append(f"waiting  for {', '.join(awaited)}, {max(0, progress.deadline - time.time()):.0f} s at most")
    if progress.eta:
        lines.append(f"left     about {progress.eta / 60:.0f} min, at {progress.round_seconds:.0f} s a round")
    if progress.reason:
        lines.append(f"reason   {progress.reason}")
    lines += [f"node     {node['name']}: {node['status']}" for node in nodes]
    return lines
