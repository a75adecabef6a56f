"""HTML page of a model's worst errors, with pictures and patients, for the secret zone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpp.errors import ConfigError, UnusableFileError
from fedpp.imaging.preparation import chosen_frames
from fedpp.imaging.sequence import FrameFiles, ImageSequence
from fedpp.reporting.page import TEMPLATES, page_template
from fedpp.survey.examination import thumbnail
from fedpp.survey.lookup import Found
from fedpp.survey.predictions import Judged, Mistakes, Prediction, judged, mistakes
from fedpp.survey.survey_page import data_uri
from fedpp.texts import counted, either, printable

PICTURES = 8  # frames of a sequence
SIDE = 160  # pixels of a picture's longer side


@dataclass(frozen=True)
class Errors:
    """The errors among predictions: of each finding and kind the `worst` first ones are shown."""

    predictions: Sequence[Prediction]
    groups: Sequence[Mistakes]
    worst: int

    @classmethod
    def of(cls, predictions: Sequence[Prediction], worst: int) -> "Errors":
        """Find the errors; raise `ConfigError` for predictions of which no label is known."""
        known = judged(predictions)
        if not known:
            raise ConfigError(
                "the predictions have no labels, so none is known to be wrong: predict a dataset that was ingested "
                "with labels, or leave --page out"
            )
        groups = [group for finding, among in known.items() for group in mistakes(finding, among)]
        return cls(predictions, groups, worst)

    def shown(self, group: Mistakes) -> Sequence[Judged]:
        """Return the errors of a group that the page shows."""
        return group.wrong[: self.worst]

    def sequences(self) -> dict[str, Prediction]:
        """Return the predictions on the page by the pseudonym of their sequence."""
        shown = [one.prediction for group in self.groups for one in self.shown(group)]
        return {prediction.sequence: prediction for prediction in shown}

    def counts(self) -> dict[str, Any]:
        """Return how many predictions there are, and how many errors by finding and kind, without any name."""
        by_finding: dict[str, dict[str, int]] = {}
        for group in self.groups:
            by_finding.setdefault(group.finding, {})[group.kind] = len(group.wrong)
        return {
            "predictions": len(self.predictions),
            "unlabelled": sum(not _known(row) for row in self.predictions),
            "errors": by_finding.get("", by_finding),
            "shown": len(self.sequences()),
        }


def render(name: str, errors: Errors, found: Mapping[str, Found]) -> str:
    """Return the page; `found` has the sequence of each error that is shown."""
    pictures = {
        pseudonym: _pictures(found[pseudonym].sequence, row.frames) for pseudonym, row in errors.sequences().items()
    }
    groups = [
        {
            "title": _title(group),
            "what": _what(group),
            "wrong": len(group.wrong),
            "cards": [_card(one, found[one.prediction.sequence], pictures) for one in errors.shown(group)],
        }
        for group in errors.groups
    ]
    return page_template(TEMPLATES / "errors.html.j2").render(
        name=printable(name), counts=errors.counts(), groups=groups, worst=errors.worst, most=PICTURES
    )


def _title(group: Mistakes) -> str:
    return f"{group.finding}: {group.kind}" if group.finding else group.kind.capitalize()


def _what(group: Mistakes) -> str:
    """Return the group in a sentence that names both sides."""
    negative, *positive = group.classes
    sides = {
        "false negatives": (either(positive), negative),
        "false positives": (negative, either(positive)),
        "another positive class": (either(positive), "another of these"),
    }
    true, called = sides[group.kind]
    return f"{len(group.wrong)} of {group.judged} labelled {true} were called {called}"


def _known(row: Prediction) -> bool:
    states = row.label.values() if isinstance(row.label, Mapping) else [row.label]
    return any(state is not None for state in states)


def _card(one: Judged, found: Found, pictures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    row = one.prediction
    return {
        "patient": printable(found.sequence.patient),
        "sequence": printable(found.sequence.id),
        "pseudonym": row.sequence,
        "split": row.split,
        "true": one.classes[one.true],
        "score": one.score,
        "predicted": one.classes[one.predicted],
        "predicted_score": one.probabilities[one.predicted],
        "frames": row.frames,
        **pictures[row.sequence],
    }


def _pictures(sequence: ImageSequence, frames: int) -> dict[str, Any]:
    """Return the newest `frames` of a sequence as pictures, or why there are none.

    A window of visits, and `ingest --window`, take the newest.
    """
    length = len(sequence.frames)
    if length < frames:
        return {"images": [], "why": f"the raw data have {length} of its {counted(frames, 'frame')}"}
    places = [length - frames + place for place in chosen_frames(frames, PICTURES)]
    try:
        source = sequence.frames
        read = source.take(places) if isinstance(source, FrameFiles) else [source[place] for place in places]
        images = [
            {"uri": data_uri(thumbnail(frame, SIDE)), "number": place - length + frames + 1}
            for place, frame in zip(places, read, strict=True)
        ]
    except UnusableFileError as error:
        return {"images": [], "why": f"its images cannot be read: {error.reason}"}
    return {"images": images, "why": ""}
