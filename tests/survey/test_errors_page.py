"""The page of the worst errors: exactly the wrong predictions, the worst first, with their patients and pictures."""

import base64
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpp.errors import ConfigError
from fedpp.imaging.images import read_image
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence
from fedpp.survey.errors_page import Errors, render
from fedpp.survey.lookup import Found
from fedpp.survey.predictions import Prediction, load

HOSTILE = "<script>alert(1)</script>{{ 7 * 6 }}"


def predicted(number: int, label: object, **probabilities: float) -> Prediction:
    return Prediction(f"{number:032x}", f"{100 + number:032x}", "test", 2, label, probabilities)


def of_two(number: int, label: str | None, ill: float) -> Prediction:
    return predicted(number, label, well=1 - ill, ill=ill)


TWO = [
    of_two(1, "ill", 0.4),
    of_two(2, "ill", 0.1),
    of_two(3, "ill", 0.9),
    of_two(4, "well", 0.6),
    of_two(5, "well", 0.2),
    of_two(6, None, 0.2),
    of_two(7, "ill", 0.5),  # a tie is the negative class, as for argmax
    of_two(8, "ill", 0.1),
]
THREE = [
    predicted(1, "a", no=0.6, a=0.3, b=0.1),
    predicted(2, "a", no=0.1, a=0.3, b=0.6),
    predicted(3, "b", no=0.1, a=0.3, b=0.6),
    predicted(4, "no", no=0.1, a=0.3, b=0.6),
]
FINDINGS = [
    predicted(1, {"Edema": True, "Mass": False}, Edema=0.3, Mass=0.9),
    predicted(2, {"Edema": None, "Mass": False}, Edema=0.9, Mass=0.3),
    predicted(3, {"Edema": False, "Mass": None}, Edema=0.8, Mass=0.9),
    predicted(4, {"Edema": None, "Mass": None}, Edema=0.8, Mass=0.9),
]
CASES = {
    "two classes": (TWO, {"False negatives": [2, 8, 1, 7], "False positives": [4]}, 1),
    "three classes": (THREE, {"False negatives": [1], "False positives": [4], "Another positive class": [2]}, 0),
    "findings": (
        FINDINGS,
        {
            "Edema: false negatives": [1],
            "Edema: false positives": [3],
            "Mass: false negatives": [],
            "Mass: false positives": [1],
        },
        1,
    ),
}


def names(rows: list[Prediction]) -> dict[str, Found]:
    """Return a found sequence of two frames for each prediction."""
    return {
        row.sequence: Found(
            ImageSequence(
                f"scan-{number}", f"MRN-{number}", None, tuple(np.random.default_rng(number).uniform(size=(3, 8, 8)))
            )
        )
        for number, row in ((int(row.sequence, 16), row) for row in rows)
    }


def sections(page: str) -> dict[str, list[int]]:
    """Return the numbers of the patients below each heading, in their order."""
    _, *parts = re.split(r'<h2 id="group\d+">', page)
    return {
        part.split("</h2>")[0]: [int(number) for number in re.findall(r">MRN-(\d+)<", part.split("</section>")[0])]
        for part in parts
    }


@pytest.mark.parametrize(("rows", "expected", "unlabelled"), CASES.values(), ids=CASES)
def test_the_page_has_exactly_the_wrong_ones_the_worst_first(
    rows: list[Prediction], expected: dict[str, list[int]], unlabelled: int
):
    """Of each finding and kind, by the score of the true label, with its pseudonym; equal ones by pseudonym."""
    errors = Errors.of(rows, 20)
    page = render("raw", errors, names(rows))
    assert sections(page) == expected
    shown = {number for numbers in expected.values() for number in numbers}
    assert set(errors.sequences()) == {f"{number:032x}" for number in shown}
    assert set(re.findall(r"<code>([0-9a-f]{32})</code>", page)) == set(errors.sequences())
    counts = errors.counts()
    assert (counts["predictions"], counts["unlabelled"], counts["shown"]) == (len(rows), unlabelled, len(shown))
    by_finding = counts["errors"] if "Edema" in counts["errors"] else {"": counts["errors"]}
    counted = [count for of_finding in by_finding.values() for count in of_finding.values()]
    assert counted == [len(numbers) for numbers in expected.values()]


def test_the_worst_alone_are_shown_and_all_are_counted():
    """`worst` bounds each kind; what is left out is said."""
    errors = Errors.of(TWO, 2)
    page = " ".join(render("raw", errors, names(TWO)).split())
    assert sections(page) == {"False negatives": [2, 8], "False positives": [4]}
    assert "4 of 5 labelled ill were called well; the worst 2 are shown." in page
    assert "1 of 2 labelled well were called ill." in page
    assert len(errors.sequences()) == 3


def test_each_error_has_both_labels_and_their_scores():
    """Label, prediction and probabilities stand beside the pictures."""
    page = " ".join(render("raw", Errors.of(THREE, 20), names(THREE)).split())
    card = page[page.index("Another positive class</h2>") :]
    assert 'True label <strong>a</strong> <span class="number">(score 0.3000)' in card
    assert 'Predicted <strong>b</strong> <span class="number">(score 0.6000)' in card
    assert "Split test" in card
    findings = " ".join(render("raw", Errors.of(FINDINGS, 20), names(FINDINGS)).split())
    assert "1 of 1 labelled present were called absent." in findings
    assert 'True label <strong>present</strong> <span class="number">(score 0.3000)' in findings


def test_pictures_are_the_newest_frames_and_load_nothing():
    """Two of three frames are of the sequence that was predicted; the page holds them, and names nothing elsewhere."""
    row = TWO[0]
    page = render("raw", Errors.of([row], 20), names([row]))
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    frames = names([row])[row.sequence].sequence.frames[1:]
    for picture, frame in zip(pictures, frames, strict=True):
        scaled = (frame - frame.min()) / (frame.max() - frame.min()) * 255
        np.testing.assert_allclose(np.asarray(picture), scaled, atol=1)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_hostile_names_are_text():
    """Names of patients, classes and folders come from outside."""
    row = predicted(1, HOSTILE, well=0.9, **{HOSTILE: 0.1})
    sequence = replace(names([row])[row.sequence].sequence, patient=HOSTILE, id=f"{HOSTILE}\n\x1b")
    page = render(HOSTILE, Errors.of([row], 20), {row.sequence: Found(sequence)})
    assert "<script>" not in page
    assert "{{ 7 * 6 }}" in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    ("content", "why"), [(b"no picture", "its images cannot be read"), (None, "the raw data have 1 of its 2 frames")]
)
def test_an_error_whose_pictures_are_gone_says_so(content: bytes | None, why: str, tmp_path: Path):
    """The card keeps its patient, and gives the reason in place of pictures, without the file's name."""
    file = tmp_path / "MRN.png"
    file.write_bytes(content or b"")
    files = FrameFiles([FrameFile(file, 1, read_image)] * (2 if content else 1))
    row = TWO[0]
    page = render("raw", Errors.of([row], 20), {row.sequence: Found(ImageSequence("scan", "MRN-1", None, files))})
    assert sections(page)["False negatives"] == [1]
    assert f"No pictures: {why}" in page
    assert "MRN.png" not in page


def test_predictions_without_labels_have_no_errors():
    """None is known to be wrong: that is said, and no empty page is written."""
    with pytest.raises(ConfigError, match="have no labels, so none is known to be wrong"):
        Errors.of([of_two(1, None, 0.3)], 20)


GOOD = {**asdict(TWO[0])}
BAD = {
    "no JSON": "{",
    "no rows": "[]",
    "an object": json.dumps(GOOD),
    "a number": "[7]",
    "a missing key": json.dumps([{key: value for key, value in GOOD.items() if key != "frames"}]),
    "another label": json.dumps([GOOD | {"label": "unknown"}]),
    "a list for a label": json.dumps([GOOD | {"label": ["ill"]}]),
    "other findings": json.dumps([GOOD | {"label": {"ill": True}}]),
    "states of text": json.dumps([GOOD | {"label": {"ill": "yes", "well": None}}]),
    "a share above one": json.dumps([GOOD | {"probabilities": {"well": 1.5, "ill": 0.1}}]),
    "a share that is no number": json.dumps([GOOD | {"probabilities": {"well": float("nan"), "ill": 0.1}}]),
    "a short pseudonym": json.dumps([GOOD | {"sequence": "ab"}]),
    "no frames": json.dumps([GOOD | {"frames": 0}]),
    "another split": json.dumps([GOOD | {"split": "all"}]),
    "two sets of classes": json.dumps([GOOD, GOOD | {"label": None, "probabilities": {"a": 0.5, "b": 0.5}}]),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_output_of_predict_is_refused(text: str):
    """In one line that names the file and what writes such a file."""
    with pytest.raises(ConfigError, match=r"^p\.json holds no predictions: write it by `fedpp-site predict"):
        load(Path("p.json"), text)


@pytest.mark.parametrize("rows", [TWO, THREE, FINDINGS])
def test_predictions_are_read_as_they_are_written(rows: list[Prediction]):
    """`load` is the inverse of JSON."""
    assert load(Path("p.json"), json.dumps([asdict(row) for row in rows])) == rows
