"""`run`, `status` and `stop` without a SuperLink: settings from file and command line, and resumed settings."""

import json
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from coordinator_runs import CARD

from coordinator.__main__ import main
from coordinator.operator import flower_command, run_commands
from coordinator.operator.bundle_build import built
from coordinator.operator.flower_command import NoSuperLinkError, flower
from coordinator.operator.superlink import CONNECTION, State
from coordinator.server.progress import Progress
from coordinator.server.run_state import RunState
from fedpp.errors import ConfigError


def begun(out: Path) -> Path:
    """Return the folder of a run that a ServerApp has started; an earlier failure leaves no folder."""
    RunState(out).folder.mkdir(parents=True)
    (RunState(out).folder / "nonce").touch()
    return out


def settings(out: Path) -> dict[str, Any]:
    """Return the settings that a run was started with."""
    return dict(json.loads(RunState(out).configuration.read_text()))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "domain.card"
    path.write_text(CARD.to_json())
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a coordinator's state folder, without a SuperLink."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def run(*arguments: object, status: int = 1) -> None:
    assert main(["run", *map(str, arguments)]) == status


def test_a_file_of_settings_supplements_the_command_line(
    card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line has precedence over the file, and the file over the defaults."""
    file, out = tmp_path / "run.yaml", begun(tmp_path / "out")
    file.write_text(f"domain: {card}\nsites: 3\nout: {out}\nrounds: 7\nlearning-rate: 1\nsecure-aggregation: false\n")
    run("--state", state, file, "--set", "rounds=9", "--sites", 4)
    made = settings(out)
    assert (made["rounds"], made["sites"], made["learning-rate"], made["secure-aggregation"]) == (9, 4, 1, False)
    assert (made["epochs"], made["out"], made["card"]) == (2, str(out), CARD.to_json())
    assert "is no coordinator's state" in capsys.readouterr().err


def test_a_run_keeps_the_code_that_it_was_started_with(card: Path, state: Path, tmp_path: Path) -> None:
    """Its copy makes the bundle whose hash `bundle` prints, whatever happens to the checkout."""
    run("--state", state, "--domain", card, "--sites", 2, "--out", begun(tmp_path / "out"))
    assert built(RunState(tmp_path / "out").app) == built()


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
        ("rounds: 1.5", "run configuration: rounds must be a whole number of at least 1, got 1.5"),
        ("secure-aggregation: 1", "run configuration: secure-aggregation must be true or false, got 1"),
        ("rounds: 0", "run configuration: rounds must be a whole number of at least 1, got 0"),
        ("quorum: 3", "quorum must be at most the number of sites, 2, got 3"),
    ],
)
def test_an_invalid_file_of_settings_is_refused(
    text: str, reason: str, card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before a folder is created."""
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    file.write_text(text)
    run("--state", state, file, "--domain", card, "--sites", 2, "--out", out)
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "rounds"], "--set takes name=value"),
        (["--set", "card=x"], "--set takes name=value"),
        (["--set", "rounds=1", "--set", "rounds=2"], "--set rounds is given twice"),
        (["--set", "rounds=ten"], "run setting rounds must be a whole number, got 'ten'"),
        (["--set", "secure-aggregation=yes"], "run setting secure-aggregation must be true or false, got 'yes'"),
        (["--set", "learning-rate=fast"], "run setting learning-rate must be a number, got 'fast'"),
    ],
)
def test_invalid_settings_are_refused(
    arguments: list[str], reason: str, card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The type is named in plain words."""
    run("--state", state, "--domain", card, "--sites", 2, "--out", tmp_path / "out", *arguments)
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_settings(card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of out, domain and sites, which may be given on the command line or in the file."""
    for given, missing in (
        ([], "--out FOLDER"),
        (["--out", tmp_path / "out"], "--domain CARD"),
        (["--out", tmp_path / "out", "--domain", card], "--sites NUMBER"),
    ):
        run("--state", state, *given)
        assert f"{missing} is needed, on the command line or in the file of settings" in capsys.readouterr().err


def test_a_started_run_is_not_started_again(
    card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --resume its folder is refused; with it, the settings are those of the start."""
    out = begun(tmp_path / "out")
    begin = ("--state", state, "--domain", card, "--sites", 2, "--out", out)
    run(*begin, "--set", "rounds=3")
    before = settings(out)
    run(*begin)
    assert "holds a federation already: choose another --out" in capsys.readouterr().err
    run("--state", state, "--out", out, "--resume", "--set", "wait-seconds=5")
    assert settings(out) == {**before, "wait-seconds": 5.0}


def test_a_resumed_run_keeps_its_settings(
    card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its length and its waits may change; the parts of the run specification may not."""
    out = begun(tmp_path / "out")
    run("--state", state, "--domain", card, "--sites", 2, "--out", out)
    before = settings(out)
    capsys.readouterr()
    for name in run_commands.CHANGEABLE:
        value = {"quorum": 1}.get(name, 7)
        run("--state", state, "--out", out, "--resume", "--set", f"{name}={value}")
        assert settings(out)[name] == value
    capsys.readouterr()
    run("--state", state, "--out", out, "--resume", "--set", "learning-rate=0.5")
    assert "learning-rate was 0.001, got 0.5: start a new run, with --model" in capsys.readouterr().err
    assert settings(out)["learning-rate"] == before["learning-rate"]


def test_resume_starts_a_run_in_a_new_folder(card: Path, state: Path, tmp_path: Path) -> None:
    """So a service that is restarted after any end may always use it."""
    out = begun(tmp_path / "out")
    run("--state", state, "--domain", card, "--sites", 2, "--out", out, "--resume")
    assert settings(out)["sites"] == 2


def test_status_shows_the_progress_of_a_run(
    card: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the last run, or of another; for people in lines, for programs in one JSON object."""
    out = begun(tmp_path / "out")
    run("--state", state, "--domain", card, "--sites", 2, "--out", out)
    told = Progress("7", "training", 2, 5, 2, {"a": "pending", "b": "replied"}, 0.0, 1.0, 90.0)
    RunState(out).progress.write_text(json.dumps(told.to_mapping()))
    capsys.readouterr()
    assert main(["status", "--state", str(state)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"run      {out}",
        "state    training (no ServerApp runs: `run` starts a new one, or run --resume)",
    ]
    assert lines[2:] == [
        "round    2 of 5, attempt 2",
        "site     a: pending",
        "site     b: replied",
        "left     about 6 min, at 90 s a round",
    ]
    assert main(["status", "--state", str(state), "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {**told.to_mapping(), "out": str(out), "running": False, "nodes": []}
    with RunState(out).held():
        assert main(["status", "--state", str(state)]) == 0
    assert "state    training" in capsys.readouterr().out.splitlines()


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

    going = Thread(target=run_until_stopped, daemon=True)  # a test that fails ends
    going.start()
    while not folder.is_held():
        time.sleep(0.01)
    assert main(["stop", "--state", str(state)]) == 0
    assert ended == [True]
    assert f"stopping the run in {folder.out}; resume it with run --resume" in capsys.readouterr().err
    going.join()


def test_a_finished_run_is_not_repeated(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--resume` of a finished run prints its test metrics."""
    (tmp_path / "federation.json").write_text("{}")
    run("--state", state, "--out", tmp_path, "--resume")
    assert "is not a federation's record" in capsys.readouterr().err


def test_every_default_can_be_set() -> None:
    """`run_config` returns all settings of a run, typed like the defaults."""
    given = {"card": "{}", "sites": 2, "out": "out", "initial-model": ""}
    made = run_commands.run_config(["rounds=3", "secure-aggregation=false", "learning-rate=1e-4", "filters=4,8"], given)
    assert (made["rounds"], made["secure-aggregation"], made["learning-rate"], made["filters"]) == (
        3,
        False,
        1e-4,
        "4,8",
    )
    with pytest.raises(ConfigError, match="there is no setting 'nothing'"):
        run_commands.run_config([], given, {"nothing": 1})


def test_status_shows_that_a_run_failed(card: Path, state: Path, tmp_path: Path) -> None:
    """If no ServerApp runs to report it, `run` does."""
    out = begun(tmp_path / "out")
    command = ("--state", state, "--domain", card, "--sites", 2, "--out", out)
    run(*command)
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
