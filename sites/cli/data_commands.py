"""Data commands of `fedpp-site`: survey raw images, ingest them, inspect and verify encrypted datasets."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedpp.cli import add_default, add_json, natural, path, positive
from fedpp.config.hyperparameters import DTYPES, Dtype
from fedpp.config.run_config import LAYOUTS
from fedpp.config.task import GAPS, Gaps
from fedpp.errors import ConfigError, RawDataError
from fedpp.texts import either, printable

from .opening import PassphraseSource, add_domain, card_of, open_domain, show, trainers_dataset

if TYPE_CHECKING:
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.readers.breakhis import Series
    from fedpp.imaging.readers.layout import Choices
    from fedpp.imaging.readers.studies import Uncertain, Views
    from fedpp.imaging.sequence import ImageSequence
    from fedpp.imaging.splits import SplitPlan
    from fedpp.ingest.ingestion import IngestSummary


def _add_raw(to: argparse.ArgumentParser) -> None:
    to.add_argument("raw", type=path, help="folder of images in one of the layouts, or a DICOM file")
    add_default(to, "--layout", "auto", "layout of the folder", LAYOUTS)
    targets = "X-rays with findings: one finding, several with commas, or competition for CheXpert's five"
    add_default(to, "--target", "Pleural Effusion", targets, str)
    add_default(
        to, "--uncertain", "ignore", "CheXpert, MIMIC-CXR: meaning of the label -1", ("ones", "zeros", "ignore")
    )
    add_default(to, "--views", "frontal", "CheXpert, MIMIC-CXR: images of a study", ("frontal", "first", "all"))
    add_default(to, "--series", "magnification", "BreakHis: images of a sequence", ("magnification", "slide"))


def add_survey_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `survey`."""
    _add_raw(to)
    to.add_argument("--out", type=path, help="page to write (HTML with thumbnails, mode 0600)")
    to.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    to.add_argument("--strict", action="store_true", help="exit with status 1 if there is any issue")
    add_json(to)


def survey(
    *,
    raw: Path,
    layout: str,
    target: str,
    uncertain: "Uncertain",
    views: "Views",
    series: "Series",
    out: Path | None,
    overwrite: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Check raw data before ingest: counts, issues, and optionally a page for the secret zone."""
    from fedpp.imaging.readers.layout import Choices
    from fedpp.survey.examination import examine, summary
    from fedpp.survey.survey_page import require_new, write

    if out is not None:
        require_new(out, overwrite=overwrite)
    result = examine(raw, layout, Choices(target, uncertain, views, series), progress=True)
    if out is not None:
        write(out, result, overwrite=overwrite)
        _note(f"{out} shows images and file names: keep it in the secret zone")
    print(json.dumps(result.to_mapping()) if as_json else summary(result))
    if strict and result.issues:
        kinds = ", ".join(dict.fromkeys(issue.kind for issue in result.issues))
        plural = "" if len(result.issues) == 1 else "s"
        raise RawDataError(f"{len(result.issues)} issue{plural} ({kinds}): fix the data, or leave out --strict")
    return 0


def add_ingest_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `ingest`."""
    _add_raw(to)
    add_domain(to)
    to.add_argument("--out", type=path, required=True, help="new folder for the encrypted dataset")
    to.add_argument("--skip-unreadable", action="store_true", help="skip files that cannot be read, and report them")
    to.add_argument("--drop-unlabelled", action="store_true", help="skip sequences without a label, and report them")
    shape = to.add_argument_group("sequences")
    add_default(shape, "--predict", "sequence", "unit of a label", ("sequence", "visit"))
    shape.add_argument(
        "--window",
        type=positive,
        help="visits per sequence at most; the newest are kept (default: all; --frames with --predict visit)",
    )
    strides = "with --predict visit: use every STRIDE-th labelled visit, from the newest back"
    add_default(shape, "--stride", 1, strides, positive)
    add_default(shape, "--min-length", 1, "visits per sequence at least", positive)
    add_default(shape, "--frames", 4, "frames, chosen evenly or padded", positive)
    add_default(shape, "--size", 64, "height and width in pixels", positive)
    shape.add_argument("--colour", action="store_true", help="keep red, green and blue (default: grey)")
    add_default(shape, "--gaps", "none", "encoding of the time between frames", GAPS)
    shape.add_argument(
        "--classes",
        type=lambda text: tuple(text.split(",")),
        help="labels in order, with commas, the negative one first; each perhaps with a name, 0=healthy,1=tumour; "
        "sequences of other labels are left out (default: the only two labels, by name)",
    )
    shape.add_argument(
        "--negative", help="negative label, against all others, or those of --classes, as one positive class"
    )
    shape.add_argument(
        "--patch", type=natural, help="scheme more-frame: side of the mixed patches in pixels, 0 for rows (default: 2)"
    )
    split = to.add_argument_group("splits, by patient")
    methods = "hashed: a new patient never moves an old one; stratified: exact shares of each label"
    add_default(split, "--split", "hashed", methods, ("hashed", "stratified"))
    add_default(split, "--validation", 0.15, "share of the patients", float)
    add_default(split, "--test", 0.25, "share of the patients", float)
    split.add_argument("--folds", type=positive, help="cross-validation: number of parts, one of them for testing")
    add_default(split, "--fold", 0, "cross-validation: part for testing", natural)
    add_default(split, "--seed", 0, "seed of the split", natural)
    to.add_argument(
        "--at-rest",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="seal the dataset on the disk with AES-256-GCM (default: yes; an unsealed dataset with labels reveals the "
        "key)",
    )
    add_default(to, "--dtype", "float32", "floating point type", DTYPES)
    add_json(to)


def ingest(
    *,
    raw: Path,
    layout: str,
    target: str,
    uncertain: "Uncertain",
    views: "Views",
    series: "Series",
    domain: Path,
    passphrase: PassphraseSource,
    out: Path,
    skip_unreadable: bool,
    drop_unlabelled: bool,
    predict: Literal["sequence", "visit"],
    window: int | None,
    stride: int,
    min_length: int,
    frames: int,
    size: int,
    colour: bool,
    gaps: Gaps,
    classes: tuple[str, ...] | None,
    negative: str | None,
    patch: int | None,
    split: Literal["hashed", "stratified"],
    validation: float,
    test: float,
    folds: int | None,
    fold: int,
    seed: int,
    at_rest: bool,
    dtype: Dtype,
    as_json: bool,
) -> int:
    """Read raw sequences, split them by patient, and write them encrypted."""
    from fedpp.config.site_policy import EvaluationLimits
    from fedpp.dataset.dataset_writer import require_new
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.preparation import Preparation
    from fedpp.imaging.readers.layout import Choices
    from fedpp.imaging.splits import SplitPlan
    from fedpp.imaging.visits import by_visit, of_length
    from fedpp.ingest import ingestion
    from fedpp.keys.frame_cipher import DEFAULT_PATCH

    if stride != 1 and predict != "visit":
        raise ConfigError(f"--stride {stride} is for --predict visit: add that, or leave --stride out")
    if folds is not None and test != SplitPlan.test:
        raise ConfigError(
            f"--test {test} has no effect beside --folds {folds}, of which part --fold is for testing: leave one of "
            "them out"
        )
    require_new(out)
    plan = SplitPlan(split, seed, validation, test, folds, fold)
    preparation = Preparation(dtype, frames, size, size, channels=3 if colour else 1)
    side = DEFAULT_PATCH if patch is None else patch
    settings = ingestion.IngestSettings(preparation, plan, gaps, side, at_rest)
    opened = open_domain(domain, passphrase)
    if patch is not None and opened.scheme != "more-frame":
        raise ConfigError(
            f"--patch is for domains of the scheme more-frame, this one is of {opened.scheme}: leave it out"
        )
    choices = Choices(target, uncertain, views, series)
    sequences, recognised = _read(raw, layout, choices, skip_unreadable=skip_unreadable)
    if predict == "visit":
        sequences = by_visit(sequences, window=window or frames, stride=stride, min_length=min_length)
    else:
        sequences = of_length(sequences, min_length=min_length, max_length=window)
    if not sequences:
        labelled = ", of which the newest is labelled" if predict == "visit" else ""
        raise RawDataError(f"no sequence is left: none has {min_length} visits or more{labelled}; lower --min-length")
    if drop_unlabelled:
        sequences = _labelled(sequences)
    class_map = ClassMap.choose(sequences, classes, negative, choices.findings)
    sequences, left_out = class_map.taken(sequences)
    summary = ingestion.ingest(sequences, out, domain=opened, class_map=class_map, settings=settings, progress=True)
    _note(recognised)
    _note_classes(class_map, left_out, chosen=classes is not None or negative is not None)
    _note_missing_classes(summary, plan)
    if few := EvaluationLimits().warning(summary.patients):
        _note(few)
    show({**summary.to_mapping(), "left_out": left_out}, as_json=as_json)
    return 0


def add_inspect_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    to.add_argument("dataset", type=path, help="encrypted dataset")
    add_json(to)


def inspect(*, dataset: Path, as_json: bool) -> int:
    """Print the public description of an encrypted dataset, and check every byte of it."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    opened = EncryptedDataset.open(dataset)
    opened.verify()
    manifest = opened.manifest
    show(
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
            "sequences": opened.counts(),
            "patients": opened.patients(),
            "checksums": "intact",
        },
        as_json=as_json,
    )
    return 0


def add_verify_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    add_inspect_arguments(to)
    to.add_argument("--domain", type=path, help="domain folder, to check the domain and the seal of a sealed dataset")


def verify(*, dataset: Path, domain: Path | None, as_json: bool) -> int:
    """Read every byte of an encrypted dataset and compare checksums; with the domain folder, check its seal too."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    if domain is None:
        opened = EncryptedDataset.open(dataset)
    else:
        opened = trainers_dataset(dataset, domain)  # with the key, a manifest without its tag is refused
        opened.require_domain(card_of(domain).fingerprint)
    opened.verify()
    sealed = opened.manifest.at_rest is not None
    seal = "none" if not sealed else "not checked: that needs --domain" if domain is None else "intact"
    files = (opened.manifest.sequences, *opened.manifest.shards)
    figures = {"sequences": len(opened), "files": len(files), "bytes": sum(file.bytes for file in files)}
    show({**figures, "checksums": "intact", "seal": seal}, as_json=as_json)
    return 0


def _note(line: str) -> None:
    """Print a line on stderr without control characters of file names and labels."""
    print(printable(line), file=sys.stderr)


def _note_classes(class_map: "ClassMap", left_out: dict[str, int], *, chosen: bool) -> None:
    """Print which class is negative and which positive, and how many sequences are in neither."""
    if class_map.classes and not class_map.multi_label:
        negative, *positive = map(repr, class_map.classes)
        choose = "" if chosen else ": --negative or --classes choose another"
        _note(f"the negative class is {negative}, positive is {either(positive)}{choose}")
    if left_out:
        counted = ", ".join(f"{label} {count}" for label, count in left_out.items())
        _note(f"{sum(left_out.values())} sequences are in no class and were left out: {counted}")


def _note_missing_classes(summary: "IngestSummary", plan: "SplitPlan") -> None:
    """Print the splits that lack a class."""
    shares = {"validation": plan.validation, "test": plan.test or plan.folds}
    advice = "--split stratified divides few patients evenly" if plan.method == "hashed" else "there are too few"
    for split, names in summary.missing_classes.items():
        if shares.get(split, 1):
            _note(f"split {split} has no sequence of {', '.join(names)}: {advice}")


def _read(
    raw: Path, layout_name: str, choices: "Choices", *, skip_unreadable: bool
) -> tuple[list["ImageSequence"], str]:
    """Return all sequences and a line that describes the data; report and skip unreadable files if that is wanted."""
    from fedpp.imaging.readable import readable
    from fedpp.imaging.readers.layout import layout_of, missing_patients, read_sequences
    from fedpp.imaging.readers.patient_labels import LABELS
    from fedpp.imaging.sequence import refuse

    layout = layout_of(raw, layout_name)
    skipping = _Skipping()
    sequences, recognised = read_sequences(raw, layout, choices, skipping if skip_unreadable else refuse)
    missing = missing_patients(raw, layout, sequences)
    if skip_unreadable:
        sequences = readable(sequences, skipping)
        _note(f"{skipping.count} files that cannot be used were skipped")
    if missing:
        _note(f"note: {LABELS} names {missing} patients of whom no image was read: are their folders gone?")
    return sequences, recognised


def _labelled(sequences: list["ImageSequence"]) -> list["ImageSequence"]:
    """Return the sequences with a label, and report how many have none."""
    labelled = [sequence for sequence in sequences if sequence.label is not None]
    if len(labelled) < len(sequences):
        _note(f"{len(sequences) - len(labelled)} sequences without a label were excluded")
    return labelled


class _Skipping:
    """Error handler of readers that prints each file that cannot be used, and skips it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, file: Path, error: RawDataError) -> None:
        self.count += 1
        _note(f"skipped: {error}")
