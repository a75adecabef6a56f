"""What a run protects and what it does not, in sentences for its report."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Privacy:
    """Sentences on what a run protects and what it does not, for a reader who knows nothing of the run."""

    protects: tuple[str, ...]
    does_not_protect: tuple[str, ...]


def privacy_of(*, masked: bool, two_sites: bool = False, changes: int = 0, lifted: Sequence[str] = ()) -> Privacy:
    """Return what a run protects, with secure aggregation (`masked`), perhaps of two sites alone, or without it.

    `changes` are those of its cohort by few sites, `lifted` sites and rounds whose locks were lifted without a burn.
    """
    at_risk = (_AT_RISK.format("; ".join(lifted)),) if lifted else ()
    beyond = _OF_TWO_SITES if two_sites else _BEYOND_THE_MASK
    changed = (_CHANGED.format(changes=changes),) if changes else ()
    return Privacy(
        protects=(
            (
                "Raw images, labels in clear, patient identifiers and the key domain's secret stayed in each "
                "hospital's secret zone. Training code received encrypted frames and labels, and pseudonyms."
            ),
            f"The coordinator received no key and no dataset. {_SEEN_MASKED if masked else _SEEN_IN_CLEAR}",
        ),
        does_not_protect=(
            (
                "MORE over floating point is obfuscation of data in use, not a secure cipher: with the evaluation "
                "key, or with two known plaintext values, the plaintext can be computed exactly."
            ),
            (
                "Each hospital's trainer holds the evaluation key. Code that runs there can read that hospital's "
                "own frames and labels. A hospital must trust the code that it approves and the coordinator it joins."
            ),
            beyond if masked else _WITHOUT_MASK,
            *at_risk,
            *changed,
            (
                "A trained model, and counts over few patients, can reveal something about single patients. "
                "No differential privacy was applied."
            ),
        ),
    )


_SEEN_MASKED = (
    "Secure aggregation was on: masked updates and sealed models were random bytes to it, and what was computed stands "
    "in a contract that all hospitals signed. It saw which hospitals took part and when, their numbers of sequences, "
    "and the evaluation counts that are reported here, with histograms of scores."
)
_SEEN_IN_CLEAR = "SECURE AGGREGATION WAS OFF: it received every hospital's update, and the model, as rows of weights."
_BEYOND_THE_MASK = (
    "A hospital that alters its own updates can steer the model within the bounds of a step, and may read something of "
    "other hospitals' patients from later models. If more hospitals collude with the coordinator than the contract "
    "reckons with, they can open a single hospital's update."
)
_OF_TWO_SITES = (
    "TWO HOSPITALS HIDE NOTHING FROM EACH OTHER: each can compute the other's update, and its evaluation counts, from "
    "the sum and its own. Only the coordinator sees neither."
)
_CHANGED = (
    "HOSPITALS LEFT OR JOINED DURING THE RUN: {changes} such changes were by few hospitals. What these contributed may "
    "show in the difference of the sums before and after."
)
_AT_RISK = (
    "A LOCK WAS LIFTED ({}): the hospital had left without showing that it released nothing, and the others continued "
    "without it. If it released after all, or a copy of its vault did, its update of that round can be computed."
)
_WITHOUT_MASK = (
    "The evaluation key can be computed from rows of weights: regard the model and every hospital's update as readable "
    "by the coordinator. By models of its choice it can also read single images from evaluation counts."
)
