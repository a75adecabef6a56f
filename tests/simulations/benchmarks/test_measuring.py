"""Measuring of benchmarks: turns, ratios, and memory of a process."""

import os

import numpy as np

from simulations.benchmarks.measuring import in_turns, median_ratio, memory_bytes


def test_tasks_take_turns_and_warm_up_does_not_count():
    """Each turn runs every task once; seconds are those of the turns after the warm-up."""
    calls: list[str] = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warm_up=2)
    assert calls == ["a", "b"] * 5
    assert [(len(of.wall), len(of.processor)) for of in seconds.values()] == [(3, 3)] * 2
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_the_peak_stays_when_memory_is_released():
    """The peak of a process includes memory that it has released; a process is named by its id."""
    array = np.ones(2**23)
    assert memory_bytes("VmRSS") >= array.nbytes
    del array
    assert memory_bytes("VmHWM", os.getpid()) - memory_bytes("VmRSS") > 2**25
