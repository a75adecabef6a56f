"""Lookup: the patients and sequences behind pseudonyms, found by hashing the identifiers of raw data again.

A pseudonym cannot be inverted. Whoever has the domain secret and the raw data computes the pseudonym of every patient
and sequence, and compares. The result names patients: it is for the secret zone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from fedpp.imaging.readable import readable
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.visits import by_visit
from fedpp.ingest.ingestion import sequence_pseudonym
from fedpp.keys.key_domain import KeyDomain


@dataclass(frozen=True, slots=True)
class Found:
    """What a pseudonym stands for: a sequence, or with `whole_patient` a patient, of whom it is one."""

    sequence: ImageSequence
    whole_patient: bool = False

    def names(self) -> dict[str, str | None]:
        """Return the identifiers as the raw data have them; None for the sequence of a patient's pseudonym."""
        return {"patient": self.sequence.patient, "sequence": None if self.whole_patient else self.sequence.id}


def look_up(pseudonyms: Collection[str], sequences: Sequence[ImageSequence], domain: KeyDomain) -> dict[str, Found]:
    """Return what each pseudonym stands for, in their order; those of no patient and no sequence are left out.

    Law: `look_up([sequence_pseudonym(domain, s)], sequences, domain)` is that sequence, for each of `sequences` and of
    the windows of visits that `by_visit` makes of them. Of a window it is the visit with all visits before it.
    """
    left, found = set(pseudonyms), dict[str, Found]()
    named = chain(_patients(sequences, domain), _whole(sequences, domain), _visits(sequences, domain))
    for pseudonym, what in named if left else ():
        if pseudonym in left:
            found[pseudonym] = what
            left.remove(pseudonym)
            if not left:
                break
    return {pseudonym: found[pseudonym] for pseudonym in pseudonyms if pseudonym in found}


def of_patients(
    pseudonyms: Collection[str], sequences: Sequence[ImageSequence], domain: KeyDomain
) -> list[ImageSequence]:
    """Return the sequences of these patients, without images that cannot be decoded, as `ingest` takes them.

    A sequence of which nothing can be decoded stays as it is.
    """
    of_patient = _patient_pseudonyms(domain)
    return [
        next(iter(readable([sequence], lambda *_: None)), sequence)
        for sequence in sequences
        if of_patient(sequence.patient) in pseudonyms
    ]


def _patients(sequences: Sequence[ImageSequence], domain: KeyDomain) -> Iterator[tuple[str, Found]]:
    of_patient = _patient_pseudonyms(domain)
    return ((of_patient(sequence.patient), Found(sequence, whole_patient=True)) for sequence in sequences)


def _patient_pseudonyms(domain: KeyDomain) -> Callable[[str], str]:
    return cache(lambda patient: domain.pseudonym("patient", patient))


def _whole(sequences: Sequence[ImageSequence], domain: KeyDomain) -> Iterator[tuple[str, Found]]:
    return ((sequence_pseudonym(domain, sequence), Found(sequence)) for sequence in sequences)


def _visits(sequences: Sequence[ImageSequence], domain: KeyDomain) -> Iterator[tuple[str, Found]]:
    """Yield the windows of each labelled visit: `ingest --stride` and `--min-length` only leave some of them out."""
    for sequence in sequences:
        if sequence.labels is not None:
            yield from _whole(by_visit([sequence], window=len(sequence.labels)), domain)
