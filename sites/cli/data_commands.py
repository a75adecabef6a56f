"""Data commands of `fedpp-site`: survey raw images, ingest them, inspect and verify encrypted datasets."""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedpp.cli import add_default, add_json, natural, path, positive
from fedpp.config.hyperparameters import DTYPES, Dtype
from fedpp.config.run_config import LAYOUTS
from fedpp.config.task import GAPS, Gaps
from fedpp.errors import ConfigError, RawDataError, UnusableFileError
from fedpp.texts import counted, either, printable

from .opening import PassphraseSource, add_domain, card_of, open_domain, show, trainers_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedpp.imaging.account import Account
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.readers.breakhis import Series
    from fedpp.imaging.readers.layout import Choices
    from fedpp.imaging.readers.studies import Uncertain, Views
    from fedpp.imaging.sequence import ImageSequence
    from fedpp.imaging.splits import SplitPlan
    from fedpp.ingest.ingestion import IngestSummary


def add_raw(to: argparse.ArgumentParser) -> None:
    """Add the raw data, and the options by which they are read."""
    to.add_argument("raw", type=path, help="folder of images in one of the layouts, or a DICOM file")
    add_default(to, "--layout", "auto", "layout of the folder", LAYOUTS)
    targets = "X-rays with findings: one finding, several with commas, or competition for CheXpert's five"
    add_default(to, "--target", "Pleural Effusion", targets, str)
    add_default(
        to, "--uncertain", "ignore", "CheXpert, MIMIC-CXR: meaning of the label -1", ("ones", "zeros", "ignore")
    )
    add_default(to, "--views", "frontal", "CheXpert, MIMIC-CXR: images of a study", ("frontal", "first", "all"))
    add_default(to, "--series", "magnification", "BreakHis: images of a sequence", ("magnification", "slide"))


def _add_account(to: argparse.ArgumentParser) -> None:
    names = "file to write that names each file and what became of it (CSV, mode 0600)"
    to.add_argument("--account", type=path, metavar="FILE", help=names)


def add_survey_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `survey`."""
    add_raw(to)
    to.add_argument("--out", type=path, help="page to write (HTML with thumbnails, mode 0600)")
    to.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    _add_account(to)
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
    account: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Check raw data before ingest: counts, issues, and optionally a page for the secret zone."""
    from fedpp.imaging.account import require_new as require_new_account
    from fedpp.imaging.readers.layout import Choices
    from fedpp.survey.examination import examine, summary
    from fedpp.survey.survey_page import require_new, write

    require_new_account(account)
    if out is not None:
        require_new(out, overwrite=overwrite)
    result = examine(raw, layout, Choices(target, uncertain, views, series), progress=True)
    if out is not None:
        write(out, result, overwrite=overwrite)
        _note(f"{out} shows images and file names: keep it in the secret zone")
    if account is not None:
        result.account.write(account)
    print(json.dumps(result.to_mapping()) if as_json else summary(result))
    if strict and result.issues:
        kinds = ", ".join(dict.fromkeys(issue.kind for issue in result.issues))
        issues = counted(len(result.issues), "issue")
        raise RawDataError(f"{issues} ({kinds}): fix the data, or leave out --strict")
    return 0


def add_ingest_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `ingest`."""
    add_raw(to)
    add_domain(to)
    to.add_argument("--out", type=path, required=True, help="new folder for the encrypted dataset")
    add_default(to, "--max-lost", 0, "files that may be lost: cannot be used, and may show a patient", natural)
    unreadable = "do not count those lost files whose content cannot be read, such as damaged ones"
    to.add_argument("--skip-unreadable", action="store_true", help=unreadable)
    _add_account(to)
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
    max_lost: int,
    skip_unreadable: bool,
    account: Path | None,
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
    from fedpp.imaging.account import require_new as require_new_account
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.preparation import Preparation
    from fedpp.imaging.readers.layout import Choices, layout_of
    from fedpp.imaging.splits import SplitPlan
    from fedpp.imaging.visits import by_visit, of_length
    from fedpp.ingest import ingestion
    from fedpp.keys.frame_cipher import DEFAULT_PATCH
    from fedpp.survey.issues import issue_lines, unlabelled

    if stride != 1 and predict != "visit":
        raise ConfigError(f"--stride {stride} is for --predict visit: add that, or leave --stride out")
    if folds is not None and test != SplitPlan.test:
        raise ConfigError(
            f"--test {test} has no effect beside --folds {folds}, of which part --fold is for testing: leave one of "
            "them out"
        )
    require_new(out)
    require_new_account(account)
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
    with _accounted(raw, account) as accounted:
        layout = layout_of(raw, layout)
        decoded = max_lost > 0 or skip_unreadable  # so that what is lost is known before anything is written
        read, recognised = _read(raw, layout, choices, accounted, decoded=decoded)
        accounted.require(max_lost, skip_unreadable=skip_unreadable)
        if predict == "visit":
            sequences = by_visit(read, window=window or frames, stride=stride, min_length=min_length)
        else:
            sequences = of_length(read, min_length=min_length, max_length=window)
        if not sequences:
            newest = ", of which the newest is labelled" if predict == "visit" else ""
            raise RawDataError(f"no sequence is left: none has {min_length} visits or more{newest}; lower --min-length")
        if drop_unlabelled:
            sequences = _labelled(sequences)
        class_map = ClassMap.choose(sequences, classes, negative, choices.findings)
        sequences, left_out = class_map.taken(sequences)
        accounted.leave_out(read, sequences)
        summary = ingestion.ingest(sequences, out, domain=opened, class_map=class_map, settings=settings, progress=True)
        accounted.add_issues(summary.same_pictures)
        _note(recognised)
    for line in issue_lines(accounted.issues(), layout):
        _note(line)
    if not class_map.classes:
        _note(f"note: {unlabelled(layout)}")
    _note_classes(class_map, left_out, chosen=classes is not None or negative is not None)
    _note_missing_classes(summary, plan)
    if few := EvaluationLimits().warning(summary.patients):
        _note(few)
    counted = {"account": accounted.counts()} if as_json else {}  # a terminal has its lines already
    show({**summary.to_mapping(), "left_out": left_out, **counted}, as_json=as_json)
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
        labels = ", ".join(f"{label} {count}" for label, count in left_out.items())
        _note(f"left out, as in no class: {counted(sum(left_out.values()), 'sequence')}: {labels}")


def _note_missing_classes(summary: "IngestSummary", plan: "SplitPlan") -> None:
    """Print the splits that lack a class."""
    shares = {"validation": plan.validation, "test": plan.test or plan.folds}
    advice = "--split stratified divides few patients evenly" if plan.method == "hashed" else "there are too few"
    for split, names in summary.missing_classes.items():
        if shares.get(split, 1):
            _note(f"split {split} has no sequence of {', '.join(names)}: {advice}")


@contextmanager
def _accounted(raw: Path, file: Path | None) -> "Iterator[Account]":
    """Yield an account of the raw data, which is printed at the end, and written to `file` whatever happens.

    A file that turns out to be unusable late is lost, and raises `RawDataError` without its name. After another error
    the account is printed only where something is lost.
    """
    from fedpp.imaging.account import Account, Outcome

    account = Account(raw)
    done = False
    try:
        yield account
        done = True
    except UnusableFileError as error:
        account(error.path or raw, error)
        account.require(0, skip_unreadable=False)
        raise RawDataError(f"nothing was read: {error.reason}") from None
    finally:
        for line in account.lines() if done or account.count(Outcome.LOST) else ():
            _note(line)
        if file is not None:
            account.write(file)


def _read(
    raw: Path, layout: str, choices: "Choices", account: "Account", *, decoded: bool
) -> tuple[list["ImageSequence"], str]:
    """Return all sequences and a line that describes the data; with `decoded`, only what can be decoded is left."""
    from fedpp.imaging.readable import readable
    from fedpp.imaging.readers.layout import missing_patients, read_sequences
    from fedpp.imaging.readers.patient_labels import LABELS

    try:
        sequences, recognised = read_sequences(raw, layout, choices, account)
    except RawDataError:
        account.close([], layout)
        raise
    account.missing = missing_patients(raw, layout, sequences)
    sequences = readable(sequences, account) if decoded else sequences
    account.close(sequences, layout)
    if account.missing:
        missing = counted(len(account.missing), "patient")
        _note(f"note: {LABELS} names {missing} without an image that was read: are folders gone?")
    return sequences, recognised


def _labelled(sequences: list["ImageSequence"]) -> list["ImageSequence"]:
    """Return the sequences with a label, and report how many have none."""
    labelled = [sequence for sequence in sequences if sequence.label is not None]
    if len(labelled) < len(sequences):
        _note(f"left out, without a label: {counted(len(sequences) - len(labelled), 'sequence')}")
    return labelled
