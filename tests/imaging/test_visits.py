"""Windows over a patient's visits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.errors import ConfigError
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.visits import by_visit, of_length


def history(labels: list[str | None], patient: str = "p") -> ImageSequence:
    frames = tuple(np.full((1, 1), float(i)) for i in range(len(labels)))
    return ImageSequence("h", patient, None, frames, tuple(labels), tuple(map(float, range(len(labels)))))


def shown(sequence: ImageSequence) -> list[int]:
    return [int(frame[0, 0]) for frame in sequence.frames]


@given(
    st.lists(st.sampled_from(["0", "1", None]), min_size=1, max_size=70),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 6),
)
def test_each_window_ends_with_its_predicted_visit(labels: list[str | None], window: int, stride: int, least: int):
    """No later visit is ever in a window; its label is its last visit's; ids differ; the newest label counts."""
    least = min(least, window)
    windows = by_visit([history(labels)], window=window, stride=stride, min_length=least)
    labelled = [i for i, label in enumerate(labels) if label is not None]
    expected = [i for i in labelled if labelled[::-1].index(i) % stride == 0]
    assert [shown(w)[-1] for w in windows] == [i for i in expected if i + 1 >= least]
    for w in windows:
        last = shown(w)[-1]
        assert shown(w) == list(range(max(0, last - window + 1), last + 1))
        assert w.label == labels[last] == w.labels[-1]
        assert w.times == tuple(map(float, shown(w)))
        assert w.patient == "p"
    assert len({w.id for w in windows}) == len(windows)


def test_lengths_keep_the_newest():
    """Short sequences go, long ones lose their oldest frames, and keep their id and label."""
    sequences = [history(["0"] * n) for n in (1, 3, 9)]
    kept = of_length(sequences, min_length=2, max_length=4)
    assert [shown(s) for s in kept] == [[0, 1, 2], [5, 6, 7, 8]]
    assert {(s.id, s.label) for s in kept} == {("h", None)}
    assert of_length(sequences) == sequences


def test_bad_settings_are_refused():
    """Windows of nothing, and visits without labels, are refused."""
    for settings in ({"window": 0}, {"window": 2, "min_length": 3}, {"window": 2, "stride": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            by_visit([history(["0"])], **settings)
    with pytest.raises(ConfigError, match="no labels of their own"):
        by_visit([ImageSequence("h", "p", "a", ())], window=2)
    with pytest.raises(ConfigError, match="in order"):
        of_length([], min_length=3, max_length=2)
