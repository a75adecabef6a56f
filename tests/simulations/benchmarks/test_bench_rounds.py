"""Benchmark of rounds, in short: real deployments with plausible figures. No test depends on a time."""

import json
from pathlib import Path

import pytest
from flwr.app import RecordDict

from simulations.__main__ import main
from simulations.benchmarks import bench_rounds
from simulations.benchmarks.simulated_client import SimulatedClient
from simulations.benchmarks.simulated_clients import DOMAIN, TASK, described

SHORT = ("--megabytes", "0.25", "--rounds", "1", "--turns", "1", "--senders", "2", "3", "--sent", "0.5")


@pytest.mark.slow
def test_the_command_measures_rounds_and_memory(capfd: pytest.CaptureFixture[str]):
    """A round has seconds, in two phases, beside the empty app's; a coordinator's peak has two parts."""
    assert main(["bench", "rounds", *SHORT, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    seconds, *memory = result["rows"]
    assert seconds["case"] == "0.25 MB, 3 sites"
    assert seconds["update_mb"] == pytest.approx(0.25, rel=0.01)
    assert seconds["rounds"] == 1
    assert seconds["seconds"] == pytest.approx(seconds["seconds_training"] + seconds["seconds_opening"])
    assert min(seconds["seconds_training"], seconds["seconds_opening"], seconds["empty_app_seconds"]) > 0
    assert seconds["to_empty_app"] == seconds["seconds"] / seconds["empty_app_seconds"]
    assert [row["case"] for row in memory] == ["2 senders of 0.5 MB", "3 senders of 0.5 MB"]
    for row in memory:
        assert row["peak_mb"] == row["superlink_peak_mb"] + row["serverapp_peak_mb"]
        assert min(row["superlink_peak_mb"], row["serverapp_peak_mb"]) > 50  # Python with Flower in it
        assert row["to_first"] == row["peak_mb"] / memory[0]["peak_mb"]


def test_a_round_ends_where_the_next_one_begins():
    """The time between two rounds belongs to the first one's second part; the last one ends with the validation."""
    times, numbers = (0.0, 2.0, 5.0, 7.0, 8.0, 9.0, 13.0, 18.0, 20.0, 30.0), (0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    phases = ("waiting", *("training", "releasing", "stepping"), "stepping", *("training", "releasing"), "stepping")
    phases += ("evaluating", "completed")
    moments = list(zip(times, numbers, phases, strict=True))
    seconds = bench_rounds.Seconds
    assert bench_rounds.seconds_of(moments) == [seconds(7.0, 3.0, 4.0), seconds(11.0, 4.0, 7.0)]


@pytest.mark.parametrize("megabytes", [1, 50, 100])
def test_an_update_has_the_wanted_size(megabytes: int):
    """The values of both slots, four bytes each, have the wanted megabytes as nearly as any number of units allows."""
    dense = bench_rounds.dense_of(megabytes * 10**6)
    length = bench_rounds.update_length(dense)
    assert length * 4 == pytest.approx(megabytes * 10**6, rel=1e-3)
    assert length == 2 * bench_rounds.network_of(dense).parameters()
    distances = [abs(bench_rounds.update_length(dense + more) * 4 - megabytes * 10**6) for more in (-1, 0, 1)]
    assert min(distances) == distances[1]


def test_simulated_clients_fit_the_measured_network():
    """Their site descriptions fit the network of the other half of the benchmark."""
    network = bench_rounds.network_of(5)
    assert network.task == TASK
    counts = SimulatedClient(described("a"), DOMAIN).local_baseline()
    assert isinstance(counts, RecordDict)
    assert described("a").sequences[1:] == (2, 1)  # the simulated client's evaluation counts of validation and test


def test_the_empty_app_can_be_built():
    """Its folder has everything that `flwr run` needs."""
    from flwr.cli.build import build_fab_from_disk

    assert len(build_fab_from_disk(Path(bench_rounds.__file__).parent / "empty")) > 0


@pytest.mark.parametrize(("option", "benchmark"), [("--senders", "rounds"), ("--calls", "vault"), ("--values", "mask")])
def test_options_of_another_benchmark_are_refused(option: str, benchmark: str, capsys: pytest.CaptureFixture[str]):
    """An option that would have no effect is an error of one line."""
    assert main(["bench", "step", option, "3"]) == 1
    line = f"simulations bench: {option} is for bench {benchmark} alone: leave it out for bench step\n"
    assert capsys.readouterr().err == line
