"""The chaos suite in a form of minutes: a real deployment whose coordinator is killed, and what it is made of."""

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
from simulations.chaos.chaos_cases import CASES, LIES, fill, largest_difference, moments, same_rows, small_disk
from simulations.chaos.relay import relay


@pytest.mark.timeout(1200)
def test_a_coordinator_that_is_killed_ends_with_the_weights_of_peace(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ServerApp and SuperLink at once (the whole suite kills each alone, too): who had answered trains no more."""
    monkeypatch.setattr(chaos_cases, "KILLED", {"both": chaos_cases.KILLED["both"]})
    assert main(["chaos", "kills", "--kills", "1", "--rounds", "2", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert (row["case"], row["kills"], row["same_weights"], row["retrained"]) == ("both killed", 1, True, 0)


@pytest.mark.parametrize("error", [FederationError("no\nnode"), subprocess.TimeoutExpired("run", 9)])
def test_a_case_that_does_not_end_is_a_row(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other cases are run all the same, and the status is 1."""

    def case(name: str, *_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"case": name, "as designed": True, "seconds": 1.23456}
        if name == "kills":
            raise error

    monkeypatch.setattr(chaos_command, "_case", case)
    assert main(["chaos"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["proxy", "kills", "kills", *list(CASES)[2:]]
    assert lines[0] == "proxy: as designed True, seconds 1.235"
    assert lines[2].startswith("kills: as designed False, ended ")
    assert main(["chaos", "proxy"]) == 0


def test_a_case_that_there_is_not_is_refused() -> None:
    """The one line names those that there are."""
    with pytest.raises(ConfigError, match="there is no case 'flood': there are proxy, kills, site, cut, slow, disk"):
        list(chaos_command.run(["flood"]))


def test_moments_are_drawn_over_the_whole_run() -> None:
    """In order, the same for the same seed, in training and in judging alike."""
    drawn = moments(1, 1000, 6)
    assert drawn == sorted(drawn) == moments(1, 1000, 6) != moments(2, 1000, 6)
    assert {int(2 * moment) for moment in drawn} == set(range(12))


def test_what_is_compared_is_compared_to_the_bit() -> None:
    """Weights that differ in sign of zero are not the same; figures of another number are infinitely far."""
    rows = {"dense/bias": np.zeros(3)}
    assert same_rows(rows, {"dense/bias": np.zeros(3)})
    assert not same_rows(rows, {"dense/bias": -np.zeros(3)})
    assert not same_rows(rows, {})
    assert largest_difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert largest_difference([1.0], [1.0, 2.0]) == float("inf")


def test_a_cut_passes_nothing_and_loses_nothing() -> None:
    """What is sent meanwhile comes afterwards, on old connections and on new ones."""
    with socket.create_server(("127.0.0.1", 0)) as server, relay(server.getsockname()[1]) as stretch:
        host, _, port = stretch.address.partition(":")
        with socket.create_connection((host, int(port)), 10) as caller:
            called, _ = server.accept()
            with called:
                called.settimeout(10)
                caller.sendall(b"before")
                assert called.recv(100) == b"before"
                cut = threading.Thread(target=stretch.cut, args=(1.0,))
                cut.start()
                began = time.monotonic()
                time.sleep(0.1)
                caller.sendall(b"meanwhile")
                with socket.create_connection((host, int(port)), 10) as other:
                    other.sendall(b"another")
                    assert called.recv(100) == b"meanwhile"
                    assert time.monotonic() - began > 0.8
                    answered, _ = server.accept()
                    with answered:
                        assert answered.recv(100) == b"another"
                cut.join()


def test_a_small_disk_can_be_filled(tmp_path: Any) -> None:
    """No byte more fits, until the file is gone."""
    try:
        with small_disk(tmp_path / "disk", 1) as room:
            fill(room / "junk")
            with pytest.raises(OSError, match="No space left"):
                (room / "more").write_bytes(bytes(10**5))
            (room / "junk").unlink()
            (room / "more").write_bytes(bytes(10**5))
    except FederationError as error:
        assert "it takes root" in str(error)


def test_every_lie_can_be_told() -> None:
    """The suite's names are those that the altered site knows."""
    altered = (
        chaos_command.Path(chaos_command.__file__).parents[1] / "altered" / "poison" / "sitecustomize.py"
    ).read_text()
    assert [lie for lie in LIES if f'"{lie}"' not in altered] == []
