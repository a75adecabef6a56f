"""`run`, `status` and `stop` without a SuperLink: settings from file and command line, and resumed settings."""

import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from coordinator_runs import CARD
from hypothesis import given
from hypothesis import strategies as st

from coordinator.__main__ import main
from coordinator.operator import flower_command, run_commands
from coordinator.operator.bundle_build import built
from coordinator.operator.flower_command import NoSuperLinkError, flower
from coordinator.operator.superlink import CONNECTION, State
from coordinator.server.progress import Progress
from coordinator.server.run_state import RunState
from fedpp.config.run_config import to_toml
from fedpp.errors import ConfigError
from fedpp.protocol.run_record import RECORD

GIVEN: dict[str, str | int] = {"card": "{}", "sites": 2, "out": "/o", "initial-model": ""}
Run = Callable[..., str]
START = ("--domain", "domain.card", "--sites", "2", "--out", "out")
RESUME = ("--out", "out", "--resume")
WHOLE = "run configuration: rounds must be a whole number of at least 1, got"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a coordinator's state folder, without a SuperLink."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def run(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that calls `run`, which must fail, in a folder with a domain card; it returns the one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "domain.card").write_text(CARD.to_json())

    def call(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["run", "--state", str(state), *arguments]) == 1
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert printed.out == ""
        assert line.startswith("coordinator run: ")
        return line

    return call


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the folder of a run that a ServerApp has started; an earlier failure leaves no folder."""
    RunState(tmp_path / "out").folder.mkdir(parents=True)
    (RunState(tmp_path / "out").folder / "nonce").touch()
    return tmp_path / "out"


def settings(out: Path) -> dict[str, Any]:
    """Return the settings that a run was started with."""
    return dict(json.loads(RunState(out).configuration.read_text()))


def test_a_file_of_settings_supplements_the_command_line(run: Run, out: Path) -> None:
    """The command line has precedence over the file, and the file over the defaults."""
    Path("run.yaml").write_text(
        f"domain: domain.card\nsites: 3\nout: {out}\nrounds: 7\nlearning-rate: 1\nsecure-aggregation: false\n"
    )
    assert "is no coordinator's state" in run("run.yaml", "--set", "rounds=9", "--sites", "4")
    made = settings(out)
    assert (made["rounds"], made["sites"], made["learning-rate"], made["secure-aggregation"]) == (9, 4, 1, False)
    assert (made["epochs"], made["out"], made["card"]) == (2, str(out), CARD.to_json())


def test_a_run_keeps_the_code_that_it_was_started_with(run: Run, out: Path) -> None:
    """Its copy makes the bundle whose hash `bundle` prints, whatever happens to the checkout."""
    run(*START)
    assert built(RunState(out).app) == built()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rounds: [1]", "must hold one setting a line"),
        ("- rounds", "must be settings like 'name: value'"),
        ("", "the run configuration is empty"),
        ("rounds: {", "is not YAML"),
        ("rounds: 3\nrounds: 4", "stands twice"),
        ("epoch: 3", "there is no setting 'epoch'"),
        ("card: x", "there is no setting 'card'"),
        ("rounds: 1.5", f"{WHOLE} 1.5"),
        ("secure-aggregation: 1", "run configuration: secure-aggregation must be true or false, got 1"),
        ("rounds: 0", f"{WHOLE} 0"),
        ("quorum: 3", "quorum must be at most the number of sites, 2, got 3"),
    ],
)
def test_an_invalid_file_of_settings_is_refused(text: str, reason: str, run: Run) -> None:
    """In one line, before a folder is created."""
    Path("run.yaml").write_text(text)
    assert reason in run("run.yaml", *START)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["colour=red"], "--set takes name=value with a name of architecture, batch-size, colluders, dense, dtype"),
        (["rounds"], "got 'rounds'"),
        (["card=x"], "got 'card=x'"),
        (["out=/elsewhere"], "got 'out=/elsewhere'"),
        (["rounds=1", "rounds=2"], "--set rounds is given twice"),
        (["rounds=ten"], "run setting rounds must be a whole number, got 'ten'"),
        (["secure-aggregation=yes"], "run setting secure-aggregation must be true or false, got 'yes'"),
        (["voting=True"], "run setting voting must be true or false, got 'True'"),
        (["learning-rate=fast"], "run setting learning-rate must be a number, got 'fast'"),
        (["rounds=0"], f"{WHOLE} 0"),
        (["dtype=float16"], "run configuration: dtype must be one of float32, float64, got 'float16'"),
    ],
)
def test_invalid_settings_are_refused(arguments: list[str], reason: str, run: Run) -> None:
    """A setting that is unknown, set elsewhere, mistyped or out of range is named in plain words."""
    assert reason in run(*START, *(text for setting in arguments for text in ("--set", setting)))
    assert not Path("out").exists()


def test_missing_settings(run: Run) -> None:
    """Each of out, domain and sites, which may be given on the command line or in the file."""
    for arguments, missing in (
        ([], "--out FOLDER"),
        (["--out", "out"], "--domain CARD"),
        (["--out", "out", "--domain", "domain.card"], "--sites NUMBER"),
    ):
        assert f"{missing} is needed, on the command line or in the file of settings" in run(*arguments)


@pytest.mark.parametrize("name", ["federation.json", "model.sealed", "model.npz"])
def test_run_refuses_to_overwrite(name: str, run: Run) -> None:
    """A folder that holds a federation, or only its model, is not changed."""
    Path("out").mkdir()
    (Path("out") / name).write_text("precious")
    assert run(*START) == (
        f"coordinator run: {Path('out').resolve()} holds a federation already: choose another --out, results are not "
        "overwritten, or resume the run with --resume"
    )
    assert (Path("out") / name).read_text() == "precious"


@pytest.mark.parametrize("out", ["domain.card/out", "/proc"])
def test_run_checks_its_folder_before_it_starts(out: str, run: Run) -> None:
    """A folder that cannot be created or written to is one line, before the first call to SuperLink."""
    line = run(*START[:-1], out)
    assert line.startswith(("coordinator run: Not a directory", "coordinator run: No such file or directory"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--model", "missing.npz"), "missing.npz: No such file or directory"),
        (("--model", "ab" * 32, "--set", "secure-aggregation=false"), "is a model.npz, got 'abab"),
        (("--domain", "none.card"), "coordinator run: cannot read the domain card none.card"),
    ],
)
def test_run_checks_its_files_before_it_starts(arguments: tuple[str, ...], reason: str, run: Run) -> None:
    """A model or card that cannot be read, or does not fit the run, is one line; nothing is submitted or created."""
    assert reason in run(*START, *arguments)
    assert not Path("out").exists()


def test_run_creates_its_folder(run: Run) -> None:
    """A new folder is created, with parents, and a run that did not start leaves it empty, ready for the next one."""
    assert "is no coordinator's state" in run(*START[:-1], "new/out")
    assert list(Path("new/out").iterdir()) == []


def test_a_started_run_is_not_started_again(run: Run, out: Path) -> None:
    """Without --resume its folder is refused; with it, the settings are those of the start."""
    run(*START, "--set", "rounds=3")
    before = settings(out)
    assert "holds a federation already: choose another --out" in run(*START)
    RunState(out).stop.touch()
    run(*RESUME, "--set", "wait-seconds=5")
    assert settings(out) == {**before, "wait-seconds": 5.0}
    assert not RunState(out).stop.exists()  # or the resumed run would stop at once


def test_a_resumed_run_keeps_its_settings(run: Run, out: Path) -> None:
    """Its length and its waits may change; the parts of the run specification may not."""
    run(*START)
    before = settings(out)
    for name in run_commands.CHANGEABLE:
        value = {"quorum": 1}.get(name, 7)
        run(*RESUME, "--set", f"{name}={value}")
        assert settings(out)[name] == value
    reason = "learning-rate was 0.001, got 0.5: start a new run, with --model"
    assert reason in run(*RESUME, "--set", "learning-rate=0.5")
    assert "rounds was 10, got 7: start a new run" in run(*RESUME, "--set", "rounds=7")  # the contract states it
    assert settings(out)["learning-rate"] == before["learning-rate"]


@pytest.mark.parametrize("option", ["--without", "--with"])
def test_only_a_masked_run_that_is_resumed_changes_its_sites(run: Run, out: Path, option: str) -> None:
    """Without --resume, before it has members, and when it has ended; nothing is changed."""
    assert f"{option} West is for a run that is resumed: add --resume" in run(*START, option, "West")
    assert not RunState(out).configuration.exists()
    run(*START)
    refused = run(*RESUME, option, "West")
    assert f"{option} West changes the sites of a masked run that --resume continues: there is none in" in refused
    (out / RECORD).write_text("{}")
    assert "has ended, and its sites stay as they are: start another one" in run(*RESUME, option, "West")
    assert not RunState(out).change()


def test_a_lost_run_is_named_by_its_nonce(run: Run, tmp_path: Path) -> None:
    """The new folder is marked, and a run that is there is not overwritten."""
    out, nonce = tmp_path / "out", ("--nonce", "ab" * 32)
    assert "--nonce is for a run that is resumed: add --resume" in run(*START, *nonce)
    run(*START, "--resume", *nonce)
    assert RunState(out).is_rebuilding()
    run(*START, "--resume", "--nonce", "cd" * 32)  # the first one was wrong
    assert RunState(out).nonce("") == "cd" * 32
    (RunState(out).folder / "contract").touch()
    assert "holds a run, and --nonce is for one whose folder was lost: leave out --nonce" in run(*RESUME, *nonce)


def test_resume_starts_a_run_in_a_new_folder(run: Run, out: Path) -> None:
    """So a service that is restarted after any end may always use it."""
    run(*START, "--resume")
    assert settings(out)["sites"] == 2


def test_status_shows_the_progress_of_a_run(
    run: Run, out: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the last run, or of another; for people in lines, for programs in one JSON object."""
    run(*START)
    progress = Progress("7", "training", 2, 5, 2, {"a": "pending", "b": "replied"}, 0.0, 1.0, 90.0)
    RunState(out).progress.write_text(json.dumps(progress.to_mapping()))
    assert main(["status", "--state", str(state)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"run      {out}",
        "state    training (no ServerApp runs: `run` starts one; if it has ended, run --resume)",
    ]
    assert lines[2:] == [
        "round    2 of 5, attempt 2",
        "site     a: pending",
        "site     b: replied",
        "left     about 6 min, at 90 s a round",
    ]
    assert main(["status", "--state", str(state), "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {**progress.to_mapping(), "out": str(out), "running": False, "nodes": []}
    with RunState(out).held():
        assert main(["status", "--state", str(state)]) == 0
    assert "state    training" in capsys.readouterr().out.splitlines()


def test_status_of_a_paused_run_names_the_sites_that_lack(
    run: Run, out: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says why, and no time that is left: nobody knows when they are back."""
    run(*START)
    sites = {"a": "replied", "b": "refused", "c": "offline"}
    reason = "b (its vault does not answer), c (it is offline)"
    progress = Progress("7", "paused", 2, 5, 1, sites, time.time() + 60.5, 1.0, 90.0, reason)  # type: ignore[arg-type]
    RunState(out).progress.write_text(json.dumps(progress.to_mapping()))
    assert main(["status", "--state", str(state)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["waiting  for b, c, 60 s at most", f"reason   {reason}"]
    assert not [line for line in lines if line.startswith("left")]


def test_status_and_stop_of_no_run_are_one_line(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no run was started, and if none is in progress."""
    for command in ("status", "stop"):
        assert main([command, "--state", str(state)]) == 1
        assert "has no run: start one with `run`" in capsys.readouterr().err
    assert main(["stop", "--state", str(state), "--out", str(tmp_path)]) == 1
    assert "no run is in progress in" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_stop_ends_the_current_run(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops the run, by default the state's last one, and waits for its end."""
    monkeypatch.setattr(run_commands, "WATCH_SECONDS", 0.01)
    folder, ended = RunState(tmp_path / "out"), []
    State(state).last.write_text(str(folder.out))

    def run_until_stopped() -> None:
        with folder.held():
            while not folder.stop.exists():
                time.sleep(0.01)
            time.sleep(0.1)
            ended.append(True)

    server = Thread(target=run_until_stopped, daemon=True)  # a test that fails ends
    server.start()
    while not folder.is_held():
        time.sleep(0.01)
    assert main(["stop", "--state", str(state)]) == 0
    assert ended == [True]
    assert f"--out {folder.out} --resume`" in capsys.readouterr().err
    server.join()


def test_a_finished_run_is_not_repeated(run: Run, out: Path) -> None:
    """`--resume` of a finished run prints its test metrics."""
    (out / "federation.json").write_text("{}")
    assert "is not a federation's record" in run(*RESUME)


def test_settings_have_the_type_of_their_default() -> None:
    """`run_config` returns all settings: a whole number for a float setting becomes a float, and text stays text."""
    defaults = run_commands.run_config([], GIVEN)
    texts = ["learning-rate=1", "filters=4,8", "seed=7", "voting=true", "secure-aggregation=false"]
    config = run_commands.run_config(texts, GIVEN)
    changes = {"learning-rate": 1.0, "filters": "4,8", "seed": 7, "voting": True, "secure-aggregation": False}
    assert config == {**defaults, **changes}
    assert isinstance(config["learning-rate"], float)
    with pytest.raises(ConfigError, match="there is no setting 'nothing'"):
        run_commands.run_config([], GIVEN, {"nothing": 1})


@given(st.text(), st.floats(0, 9))
def test_settings_survive_toml(out: str, rate: float) -> None:
    """Every text is read back from the TOML file, with its spaces, quotes and control characters."""
    values = {"out": out, "learning-rate": rate, "sites": 2}
    assert tomllib.loads(to_toml(values)) == values


def test_status_shows_that_a_run_failed(run: Run, out: Path) -> None:
    """If no ServerApp runs to report it, `run` does."""
    run(*START)
    ended = Progress.load(RunState(out).progress)
    assert ended.phase == "failed"
    assert "is no coordinator's state" in ended.reason


def test_the_wait_for_a_silent_superlink_is_bounded(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says so; it counts as unavailable."""
    (made := State(state)).connection.parent.mkdir(parents=True, exist_ok=True)
    made.connection.touch()
    monkeypatch.setattr(flower_command, "REPLY_SECONDS", 0.01)
    with pytest.raises(NoSuperLinkError, match="did not answer `flwr list` within 0 s: see .*servers.log"):
        flower(made, "list", CONNECTION)
