"""Chaos suite, a short form: a real deployment whose coordinator is killed, and the suite's parts."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedpp.errors import ConfigError, FederationError
from simulations.__main__ import main
from simulations.chaos import chaos_cases, chaos_command
from simulations.chaos.chaos_cases import CASES, FORGERIES, fill, largest_difference, moments, same_rows, small_disk
from simulations.chaos.cluster import ALTERED
from simulations.chaos.phase_kills import ORDER
from simulations.chaos.relay import relay


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_coordinator_ends_with_the_weights_of_an_uninterrupted_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ServerApp and SuperLink are killed at once (the whole suite also kills each alone); no update is retrained."""
    monkeypatch.setattr(chaos_cases, "KILLED", {"both": chaos_cases.KILLED["both"]})
    assert main(["chaos", "kills", "--kills", "1", "--rounds", "2", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert (row["case"], row["kills"], row["same_weights"], row["retrained"]) == ("both killed", 1, True, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_in_any_phase_and_a_site_away_in_it_change_no_bit(capfd: pytest.CaptureFixture[str]) -> None:
    """A vault and the coordinator are killed in each phase of a run, and a site is away in each; all is as designed."""
    assert main(["chaos", "phases", "--kills", "1", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [row["case"] for row in rows] == [
        *(f"{what} {phase}" for what in ("kills in", "a site away in") for phase in ORDER)
    ]
    assert all(row["kills_of_a_vault"] and row["kills_of_the_coordinator"] for row in rows[: len(ORDER)])


@pytest.mark.parametrize("error", [FederationError("no\nnode"), subprocess.TimeoutExpired("run", 9)])
def test_a_failed_case_is_a_row(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other cases run all the same, and the exit status is 1."""

    def case(name: str, *_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"case": name, "as designed": True, "seconds": 1.23456}
        if name == "kills":
            raise error

    monkeypatch.setattr(chaos_command, "_case", case)
    assert main(["chaos"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["proxy", "kills", "kills", *list(CASES)[2:], "phases"]
    assert lines[0] == "proxy: as designed True, seconds 1.235"
    assert lines[2].startswith("kills: as designed False, ended ")
    assert main(["chaos", "proxy"]) == 0


def test_an_unknown_case_is_refused() -> None:
    """The message names the known cases."""
    with pytest.raises(ConfigError, match="unknown case 'flood': known are proxy, .* disk, poison, phases"):
        list(chaos_command.run(["flood"]))


def test_moments_are_drawn_over_the_whole_run() -> None:
    """They are sorted, the same for a seed, and in both phases of each round."""
    drawn = moments(1, 1000, 6)
    assert drawn == sorted(drawn) == moments(1, 1000, 6) != moments(2, 1000, 6)
    assert {int(2 * moment) for moment in drawn} == set(range(12))


def test_models_are_compared_bit_for_bit() -> None:
    """Zeros of different sign differ; lists of figures of different lengths are infinitely far apart."""
    rows = {"dense/bias": np.zeros(3)}
    assert same_rows(rows, {"dense/bias": np.zeros(3)})
    assert not same_rows(rows, {"dense/bias": -np.zeros(3)})
    assert not same_rows(rows, {})
    assert largest_difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert largest_difference([1.0], [1.0, 2.0]) == float("inf")


def test_a_cut_relay_passes_nothing_and_loses_nothing() -> None:
    """Data sent during the cut arrive afterwards, on old and on new connections."""
    with socket.create_server(("127.0.0.1", 0)) as server, relay(server.getsockname()[1]) as stretch:
        host, _, port = stretch.address.partition(":")
        with socket.create_connection((host, int(port)), 10) as caller:
            called, _ = server.accept()
            with called:
                called.settimeout(10)
                caller.sendall(b"before")
                assert called.recv(100) == b"before"
                cut = threading.Thread(target=stretch.cut, args=(0.6,))
                cut.start()
                started = time.monotonic()
                time.sleep(0.1)
                caller.sendall(b"meanwhile")
                with socket.create_connection((host, int(port)), 10) as other:
                    other.sendall(b"another")
                    assert called.recv(100) == b"meanwhile"
                    assert time.monotonic() - started > 0.4
                    opened, _ = server.accept()
                    with opened:
                        assert opened.recv(100) == b"another"
                cut.join()


def test_a_small_disk_can_be_filled(tmp_path: Any) -> None:
    """No further byte fits until the file is deleted."""
    try:
        with small_disk(tmp_path / "disk", 1) as room:
            fill(room / "junk")
            with pytest.raises(OSError, match="No space left"):
                (room / "more").write_bytes(bytes(10**5))
            (room / "junk").unlink()
            (room / "more").write_bytes(bytes(10**5))
    except FederationError as error:
        assert "run as root" in str(error)


def test_every_forgery_is_implemented() -> None:
    """The altered site knows every name of the suite."""
    altered = (ALTERED / "poison" / "sitecustomize.py").read_text()
    assert [name for name in FORGERIES if f'"{name}"' not in altered] == []
