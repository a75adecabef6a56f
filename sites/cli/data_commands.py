"""`fedpp-site`: what a hospital does with its data, from raw images to a checked encrypted dataset."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError, RawDataError

from .opening import domain_of, show, trainers_dataset


def survey(options: argparse.Namespace) -> int:
    """Look at raw data before anything is encrypted; write a page of it for the secret zone."""
    from fedpp.survey.examination import look, summary
    from fedpp.survey.survey_page import require_new, write

    if options.out is not None:
        require_new(options.out, overwrite=options.overwrite)
    seen = look(options.raw, options.layout, _choices(options), progress=True)
    if options.out is not None:
        write(options.out, seen, overwrite=options.overwrite)
        print(f"{options.out} shows images and file names: keep it in the secret zone", file=sys.stderr)
    print(json.dumps(seen.to_mapping()) if options.json else summary(seen))
    if options.strict and seen.findings:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in seen.findings))
        count = len(seen.findings)
        plural = "" if count == 1 else "s"
        raise RawDataError(f"{count} finding{plural} ({kinds}): mend the data, or leave out --strict")
    return 0


def ingest(options: argparse.Namespace) -> int:
    """Read raw sequences, split them by patient, and write them encrypted."""
    from fedpp.dataset.dataset_writer import require_new
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.splits import SplitPlan
    from fedpp.ingest import ingestion as pipeline

    _refuse_idle(options)
    require_new(options.out)
    plan = SplitPlan(options.split, options.seed, options.validation, options.test, options.folds, options.fold)
    domain = domain_of(options)
    sequences, recognised = _sequences(options)
    classes = ClassMap.choose(sequences, options.classes, options.negative, _choices(options).findings)
    summary = pipeline.ingest(
        sequences,
        options.out,
        domain=domain,
        class_map=classes,
        frames=options.frames,
        height=options.size,
        width=options.size,
        plan=plan,
        dtype=options.dtype,
        channels=3 if options.colour else 1,
        time_gaps=options.gaps,
        patch=_patch(options, domain),
        at_rest=options.at_rest,
        progress=True,
    )
    print(recognised, file=sys.stderr)
    if classes.classes and not classes.multi_label and options.classes is None and options.negative is None:
        print(
            f"the negative class is {classes.classes[0]!r}, the first by name: --negative or --classes choose another",
            file=sys.stderr,
        )
    shares = {"validation": options.validation, "test": options.test or options.folds}
    advice = "--split stratified divides few patients evenly" if options.split == "hashed" else "there are too few"
    for split, names in summary.absent.items():
        if shares.get(split, 1):
            print(f"split {split} has no sequence of {', '.join(names)}: {advice}", file=sys.stderr)
    show(options, summary.to_mapping())
    return 0


def verify(options: argparse.Namespace) -> int:
    """Read every byte of an encrypted dataset and compare checksums; with the domain's folder check its seal too."""
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
    """Print what is public about an encrypted dataset, and check every byte of it."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset

    dataset = EncryptedDataset.open(options.dataset)
    dataset.verify()
    manifest = dataset.manifest
    show(
        options,
        {
            "domain": manifest.domain,
            "fingerprint": manifest.fingerprint,
            "epoch": manifest.epoch,
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


def _refuse_idle(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that would do nothing beside the others."""
    from fedpp.imaging.splits import SplitPlan

    if options.stride != 1 and options.predict != "visit":
        raise ConfigError(f"--stride {options.stride} is for --predict visit: add that, or leave --stride out")
    if options.folds is not None and options.test != SplitPlan.test:
        raise ConfigError(
            f"--test {options.test} does nothing beside --folds {options.folds}, of which part --fold is for testing: "
            "leave one of them out"
        )


def _patch(options: argparse.Namespace, domain: Any) -> int:
    """Return the side of the patches to mix; raise `ConfigError` if it is asked for in a domain that mixes none."""
    from fedpp.keys.frame_cipher import DEFAULT_PATCH

    if options.patch is not None and domain.scheme != "more-frame":
        raise ConfigError(
            f"--patch is for domains of the scheme more-frame, this one is of {domain.scheme}: leave it out"
        )
    return DEFAULT_PATCH if options.patch is None else int(options.patch)


def _sequences(options: argparse.Namespace) -> tuple[list[Any], str]:
    """Read the sequences that are wanted, and say what was recognised."""
    from fedpp.imaging.readable import readable
    from fedpp.imaging.readers.layout import absent_patients, layout_of, read_sequences
    from fedpp.imaging.readers.patient_labels import LABELS
    from fedpp.imaging.visits import by_visit, of_length

    layout = layout_of(options.raw, options.layout)
    if options.skip_unreadable:
        refused = _Refused()
        sequences, recognised = read_sequences(options.raw, layout, _choices(options), refused)
        absent = absent_patients(options.raw, layout, sequences)
        sequences = readable(sequences, refused)
        print(f"{refused.count} files that cannot be used were left out", file=sys.stderr)
    else:
        sequences, recognised = read_sequences(options.raw, layout, _choices(options))
        absent = absent_patients(options.raw, layout, sequences)
    if absent:
        print(
            f"note: {LABELS} names {absent} patients of whom no image was read: are their folders gone?",
            file=sys.stderr,
        )
    least, visits = options.min_length, options.predict == "visit"
    if visits:
        window = options.window or options.frames
        sequences = by_visit(sequences, window=window, stride=options.stride, least=least)
    else:
        sequences = of_length(sequences, least=least, most=options.window)
    if not sequences:
        wanted = f"{least} visits or more{', of which the newest is labelled' if visits else ''}"
        raise RawDataError(f"no sequence is left: none has {wanted}; lower --min-length")
    labelled = [sequence for sequence in sequences if sequence.label is not None]
    if options.drop_unlabelled and len(labelled) < len(sequences):
        print(f"{len(sequences) - len(labelled)} sequences without a label were left out", file=sys.stderr)
        return labelled, recognised
    return sequences, recognised


def _choices(options: argparse.Namespace) -> Any:
    from fedpp.imaging.readers.layout import Choices

    return Choices(options.target, options.uncertain, options.views, options.series)


class _Refused:
    """Names each file that cannot be used, and goes on."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, file: Path, error: RawDataError) -> None:
        self.count += 1
        print(f"left out: {error}", file=sys.stderr)
