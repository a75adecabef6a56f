"""Remarks on figures, in words: a test set that is tiny or one-sided, a model that finds nothing or guesses.

The terminal, the JSON and the page of a report show the same sentences. They name classes and counts.
"""

from collections.abc import Sequence

from fedpp.learning.intervals import Estimate, estimates
from fedpp.learning.metrics import Decisions, OperatingPoint, decisions
from fedpp.protocol.counts import Counts
from fedpp.texts import counted, either, printable, short

FEW = 20  # examples of a kind: with fewer, an interval of their share is about 0.3 to 0.6 wide
LONGEST_NAME = 60  # characters of a side in a sentence


def sides(classes: Sequence[str], *, finding: bool = False) -> tuple[str, str]:
    """Return the names of the negative and of the positive side; `classes` of a finding is its name alone."""
    if finding:
        return short(f"no {classes[0]}", LONGEST_NAME), short(classes[0], LONGEST_NAME)
    return short(classes[0], LONGEST_NAME), either(classes[1:], LONGEST_NAME)


def remarks(
    counts: Counts,
    classes: Sequence[str],
    *,
    finding: bool = False,
    auc: Estimate | None = None,
    point: OperatingPoint | None = None,
) -> tuple[str, ...]:
    """Return what a reader of a test's figures must know, most important first; nothing where they are sound.

    `classes` are those of the task, or the name of one `finding`. `auc` replaces the AUC of the counts' bins. `point`
    is the operating point that was tested.
    """
    negative, positive = (f'"{name}"' for name in sides(classes, finding=finding))
    decided, figures = decisions(counts), estimates(counts)
    made = [
        *_of_decisions(counts, figures["accuracy"], negative, positive),
        *_of_order(figures["auc"] if auc is None else auc),
        *_of_numbers(decided, negative, positive),
        *(_of_point(point, negative, positive) if point else ()),
    ]
    of = f"{sides(classes, finding=True)[1]}: " if finding else ""
    return tuple(printable(f"{of}{sentence}") for sentence in made)


def _of_decisions(counts: Counts, accuracy: Estimate, negative: str, positive: str) -> list[str]:
    decided, most = decisions(counts), max(map(sum, counts.confusion))
    found = f"it found 0 of {decided.positives} {positive}"
    if decided.positives and not decided.found:
        said = f"the model finds nothing: {found}"
    elif decided.negatives and not decided.cleared:
        said = f"the model clears nothing: it called all {decided.negatives} {negative} positive"
    elif accuracy.value is not None and accuracy.part <= most < counts.examples:
        said = "the model decides no better than one answer for all"
    else:
        return []
    share = f"{accuracy.part} of {accuracy.whole}"
    return [f"taking the most probable class, {said}; it is right in {share}, and one answer for all in {most}"]


def _of_order(auc: Estimate) -> list[str]:
    if auc.value is None or auc.low is None or auc.high is None:
        return []
    limits = f"(AUC {auc.value:.2f}, 95 % interval {auc.low:.2f} to {auc.high:.2f})"
    if auc.high < 0.5:
        return [f"the scores are worse than guessing {limits}: are the labels of the two sides exchanged?"]
    return [f"the scores are not shown to be better than guessing {limits}"] if auc.low <= 0.5 else []


def _of_numbers(decided: Decisions, negative: str, positive: str) -> list[str]:
    examples = decided.positives + decided.negatives
    if not examples:
        return ["no sequence was tested: there are no figures"]
    tested = ((decided.positives, positive, "sensitivity"), (decided.negatives, negative, "specificity"))
    made = []
    for number, name, figure in tested:
        if not number:
            none = f"none of {examples} sequences is {name}"
            made.append(f"the test is one-sided: {none}, so {figure} and AUC are not defined")
    few = [(n, name, figure) for n, name, figure in tested if 0 < n < FEW]
    if few:
        counts = " and ".join(f"{counted(n, 'sequence')} of {name}" for n, name, _ in few)
        figures = ", ".join(figure for *_, figure in few)
        made.append(f"the test is tiny: it has {counts}, so {figures} and AUC are uncertain")
    return made


def _of_point(point: OperatingPoint, negative: str, positive: str) -> list[str]:
    there = point.decisions
    if there.sensitivity is None or there.sensitivity >= point.wanted:
        return []
    found = f"found only {there.found} of {there.positives} {positive} in the test"
    alarms = f", and called {there.alarms} of {there.negatives} {negative} positive" if there.negatives else ""
    return [f"the threshold for a sensitivity of {point.wanted:g} on validation patients {found}{alarms}"]
