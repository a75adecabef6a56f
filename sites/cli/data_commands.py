"""Data commands of `fedpp-site`: survey raw images, ingest them, inspect and verify encrypted datasets."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedpp.errors import ConfigError, RawDataError
from fedpp.texts import printable

from .opening import domain_of, show, trainers_dataset

if TYPE_CHECKING:
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.readers.layout import Choices
    from fedpp.imaging.sequence import ImageSequence
    from fedpp.ingest.ingestion import IngestSettings, IngestSummary
    from fedpp.keys.key_domain import KeyDomain


def survey(options: argparse.Namespace) -> int:
    """Check raw data before ingest: counts, issues, and optionally a page for the secret zone."""
    from fedpp.survey.examination import examine, summary
    from fedpp.survey.survey_page import require_new, write

    if options.out is not None:
        require_new(options.out, overwrite=options.overwrite)
    result = examine(options.raw, options.layout, _choices(options), progress=True)
    if options.out is not None:
        write(options.out, result, overwrite=options.overwrite)
        _note(f"{options.out} shows images and file names: keep it in the secret zone")
    print(json.dumps(result.to_mapping()) if options.json else summary(result))
    if options.strict and result.issues:
        kinds = ", ".join(dict.fromkeys(issue.kind for issue in result.issues))
        plural = "" if len(result.issues) == 1 else "s"
        raise RawDataError(f"{len(result.issues)} issue{plural} ({kinds}): fix the data, or leave out --strict")
    return 0


def ingest(options: argparse.Namespace) -> int:
    """Read raw sequences, split them by patient, and write them encrypted."""
    from fedpp.dataset.dataset_writer import require_new
    from fedpp.imaging.labels import ClassMap
    from fedpp.ingest import ingestion

    _refuse_unused(options)
    require_new(options.out)
    settings = _ingest_settings(options)
    domain = domain_of(options)
    _refuse_patch(options, domain)
    sequences, recognised = _sequences(options)
    classes = ClassMap.choose(sequences, options.classes, options.negative, _choices(options).findings)
    summary = ingestion.ingest(
        sequences, options.out, domain=domain, class_map=classes, settings=settings, progress=True
    )
    _note(recognised)
    _note_classes(options, classes, summary)
    show(options, summary.to_mapping())
    return 0


def verify(options: argparse.Namespace) -> int:
    """Read every byte of an encrypted dataset and compare checksums; with the domain folder, check its seal too."""
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys.key_store import CARD

    if options.domain is None:
        dataset = EncryptedDataset.open(options.dataset)
    else:
        dataset = trainers_dataset(options)  # with the key, a manifest without its tag is refused
        dataset.require_domain(DomainCard.load(options.domain / CARD).fingerprint)
    dataset.verify()
    sealed = dataset.manifest.at_rest is not None
    seal = "none" if not sealed else "not checked: that needs --domain" if options.domain is None else "intact"
    files = (dataset.manifest.sequences, *dataset.manifest.shards)
    figures = {"sequences": len(dataset), "files": len(files), "bytes": sum(file.bytes for file in files)}
    show(options, {**figures, "checksums": "intact", "seal": seal})
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print the public description of an encrypted dataset, and check every byte of it."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    dataset = EncryptedDataset.open(options.dataset)
    dataset.verify()
    manifest = dataset.manifest
    show(
        options,
        {
            "domain": manifest.domain,
            "fingerprint": manifest.fingerprint,
            "key epoch": manifest.key_epoch,
            "scheme": manifest.scheme,
            "n": manifest.n,
            "dtype": manifest.dtype,
            "shape": [manifest.frames, manifest.height, manifest.width, manifest.channels],
            "classes": list(manifest.classes),
            "multi_label": manifest.multi_label,
            "gaps": manifest.gaps,
            "patch": manifest.patch,
            "sealed": manifest.at_rest is not None,
            "sequences": dataset.counts(),
            "patients": dataset.patients(),
            "checksums": "intact",
        },
    )
    return 0


def _note(line: str) -> None:
    """Print a line on stderr without control characters of file names and labels."""
    print(printable(line), file=sys.stderr)


def _refuse_unused(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for options without effect beside the others."""
    from fedpp.imaging.splits import SplitPlan

    if options.stride != 1 and options.predict != "visit":
        raise ConfigError(f"--stride {options.stride} is for --predict visit: add that, or leave --stride out")
    if options.folds is not None and options.test != SplitPlan.test:
        raise ConfigError(
            f"--test {options.test} has no effect beside --folds {options.folds}, of which part --fold is for "
            "testing: leave one of them out"
        )


def _refuse_patch(options: argparse.Namespace, domain: "KeyDomain") -> None:
    """Raise `ConfigError` for a patch in a domain that mixes none."""
    if options.patch is not None and domain.scheme != "more-frame":
        raise ConfigError(
            f"--patch is for domains of the scheme more-frame, this one is of {domain.scheme}: leave it out"
        )


def _ingest_settings(options: argparse.Namespace) -> "IngestSettings":
    from fedpp.imaging.preparation import Preparation
    from fedpp.imaging.splits import SplitPlan
    from fedpp.ingest.ingestion import IngestSettings
    from fedpp.keys.frame_cipher import DEFAULT_PATCH

    channels = 3 if options.colour else 1
    return IngestSettings(
        Preparation(options.dtype, options.frames, options.size, options.size, channels),
        SplitPlan(options.split, options.seed, options.validation, options.test, options.folds, options.fold),
        options.gaps,
        DEFAULT_PATCH if options.patch is None else options.patch,
        options.at_rest,
    )


def _note_classes(options: argparse.Namespace, classes: "ClassMap", summary: "IngestSummary") -> None:
    """Print which class is negative by default, and the splits that lack a class."""
    if classes.classes and not classes.multi_label and options.classes is None and options.negative is None:
        _note(
            f"the negative class is {classes.classes[0]!r}, the first by name: --negative or --classes choose another"
        )
    shares = {"validation": options.validation, "test": options.test or options.folds}
    advice = "--split stratified divides few patients evenly" if options.split == "hashed" else "there are too few"
    for split, names in summary.missing_classes.items():
        if shares.get(split, 1):
            _note(f"split {split} has no sequence of {', '.join(names)}: {advice}")


def _sequences(options: argparse.Namespace) -> tuple[list["ImageSequence"], str]:
    """Read the chosen sequences; return them and a line that describes the data."""
    sequences, recognised = _read(options)
    sequences = _windowed(options, sequences)
    labelled = [sequence for sequence in sequences if sequence.label is not None]
    if options.drop_unlabelled and len(labelled) < len(sequences):
        _note(f"{len(sequences) - len(labelled)} sequences without a label were excluded")
        return labelled, recognised
    return sequences, recognised


def _read(options: argparse.Namespace) -> tuple[list["ImageSequence"], str]:
    """Read all sequences; with --skip-unreadable, report and skip the files that cannot be used."""
    from fedpp.imaging.readable import readable
    from fedpp.imaging.readers.layout import layout_of, missing_patients, read_sequences
    from fedpp.imaging.readers.patient_labels import LABELS
    from fedpp.imaging.sequence import refuse

    layout = layout_of(options.raw, options.layout)
    skipping = _Skipping()
    handler = skipping if options.skip_unreadable else refuse
    sequences, recognised = read_sequences(options.raw, layout, _choices(options), handler)
    missing = missing_patients(options.raw, layout, sequences)
    if options.skip_unreadable:
        sequences = readable(sequences, skipping)
        _note(f"{skipping.count} files that cannot be used were skipped")
    if missing:
        _note(f"note: {LABELS} names {missing} patients of whom no image was read: are their folders gone?")
    return sequences, recognised


def _windowed(options: argparse.Namespace, sequences: list["ImageSequence"]) -> list["ImageSequence"]:
    """Return whole sequences of the allowed lengths, or a window of visits for each labelled visit."""
    from fedpp.imaging.visits import by_visit, of_length

    shortest, visits = options.min_length, options.predict == "visit"
    if visits:
        window = options.window or options.frames
        sequences = by_visit(sequences, window=window, stride=options.stride, min_length=shortest)
    else:
        sequences = of_length(sequences, min_length=shortest, max_length=options.window)
    if not sequences:
        wanted = f"{shortest} visits or more{', of which the newest is labelled' if visits else ''}"
        raise RawDataError(f"no sequence is left: none has {wanted}; lower --min-length")
    return sequences


def _choices(options: argparse.Namespace) -> "Choices":
    from fedpp.imaging.readers.layout import Choices

    return Choices(options.target, options.uncertain, options.views, options.series)


class _Skipping:
    """Error handler of readers that prints each file that cannot be used, and skips it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, file: Path, error: RawDataError) -> None:
        self.count += 1
        _note(f"skipped: {error}")
