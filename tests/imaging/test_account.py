"""Account of raw data: every file below a folder occurs once, and no patient is lost in silence."""

import csv
import gzip
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import write_hospitals
from conftest import DATA
from PIL import Image
from raw_images import write_images, write_table

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.account import CHOICES, COLUMNS, Account, Outcome, read_accounted
from fedpp.imaging.readable import readable
from fedpp.imaging.readers.chexpert import COLUMNS as COLUMNS_OF_CHEXPERT
from fedpp.imaging.readers.layout import Choices, layout_of, read_sequences
from fedpp.imaging.reasons import Reason

PATIENTS = ("p", "q", "r")
DICOM = ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm")


def write(root: Path, layout: str) -> Path:
    """Write three patients, each in a folder of their own, in a layout."""
    for patient, name in zip(PATIENTS, DICOM, strict=True):
        (root / patient).mkdir(parents=True)
        if layout == "dicom":
            (root / patient / name).write_bytes((DATA / "dicom" / name).read_bytes())
    if layout != "dicom":
        files = [f"{patient}/1.png" for patient in PATIENTS]
        write_images(root, *files)
        for number, file in enumerate(files):
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9), np.uint8)).save(root / file)
        write_table(root, layout, *zip(files, PATIENTS, strict=True))
    return root


def accounted(root: Path, layout: str = "auto") -> Account:
    """Read and decode a folder, whatever is lost, and check the law: each file once, patients in as out and named."""
    account, layout = Account(root), layout_of(root, layout)
    sequences, _ = read_sequences(root, layout, refuse=account)
    sequences = readable(sequences, account)
    account.close(sequences, layout)
    everything = {Path(folder, name) for folder, _, names in os.walk(root) for name in names}
    assert everything <= set(account.entries)
    used = [file.path for sequence in sequences for file in sequence.frames.files]
    assert account.count(Outcome.READ) == len(set(used))
    assert set(used) == {path for path, entry in account.entries.items() if entry.outcome == Outcome.READ}
    named = {path.relative_to(root).parts[0] for path, entry in account.entries.items() if entry.outcome != "read"}
    assert {path.name for path in root.iterdir() if path.is_dir()} <= {
        *named,
        *(path.relative_to(root).parts[0] for path in used),
    }
    return account


def png(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (9, 9), np.uint8)).save(root / name)


def touch(root: Path, name: str, content: bytes = b"something") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def damaged(root: Path, name: str) -> None:
    png(root, name)
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[: len(content) // 2])


def dicom(root: Path, name: str) -> None:
    touch(root, name, (DATA / "dicom" / "CT_small.dcm").read_bytes())


def unnamed(root: Path, form: str) -> None:
    (root / "s").mkdir()
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (9, 9), np.uint8)).save(root / "s" / "IM1", form)


def linked(root: Path, name: str, target: str) -> None:
    (root / name).symlink_to(target)


def elsewhere(root: Path) -> None:
    png(root.parent / "elsewhere", "s/1.png")
    linked(root, "s", str(root.parent / "elsewhere" / "s"))


LOST, PASSED = Outcome.LOST, Outcome.PASSED
# Of each kind: the layout, what is put beside its images, and what must become of it.
KINDS: dict[str, tuple[str, Callable[[Path], object], str, Outcome, str]] = {
    "PNG beside DICOM": ("dicom", lambda root: png(root, "s/1.png"), "s/1.png", LOST, Reason.OTHER_FORM),
    "DICOM beside PNG": ("images", lambda root: dicom(root, "s/IM1"), "s/IM1", LOST, ""),
    **{
        f"{suffix} beside DICOM": ("dicom", lambda root, n=f"s/1{suffix}": touch(root, n), f"s/1{suffix}", LOST, "")
        for suffix in (".heic", ".jp2", ".nii", ".nii.gz", ".svs", ".avif", ".mp4", ".jfif", ".webp")
    },
    "HEIC of a listed folder": ("frames", lambda root: touch(root, "q/2.heic"), "q/2.heic", LOST, ""),
    "below a listed folder": (
        "frames",
        lambda root: png(root, "q/left/1.png"),
        "q/left/1.png",
        LOST,
        Reason.OTHER_FORM,
    ),
    "OCT": ("images", lambda root: touch(root, "q/1.E2E"), "q/1.E2E", LOST, Reason.NO_DECODER),
    "damaged": ("images", lambda root: damaged(root, "s/1.png"), "s/1.png", LOST, Reason.DAMAGED),
    "link to nothing": ("images", lambda root: linked(root, "q/2.png", "gone"), "q/2.png", LOST, Reason.DANGLING),
    "link to nothing, DICOM": ("dicom", lambda root: linked(root, "q/IM2", "gone"), "q/IM2", LOST, Reason.DANGLING),
    "link to a folder elsewhere": ("images", elsewhere, "s", LOST, Reason.LINK),
    "link to a folder here": ("images", lambda root: linked(root, "s", "q"), "s", PASSED, Reason.LINK_INSIDE),
    "not in the manifest": ("manifest", lambda root: png(root, "s/1.png"), "s/1.png", PASSED, Reason.UNNAMED),
    "not in the index": ("frames", lambda root: png(root, "s/1.png"), "s/1.png", PASSED, Reason.UNNAMED),
    "another table": ("images", lambda root: touch(root, "info.csv"), "info.csv", PASSED, Reason.UNREAD_TABLE),
    "a sheet": ("dicom", lambda root: touch(root, "q/list.XLSX"), "q/list.XLSX", PASSED, Reason.UNREAD_TABLE),
    "a packed table": (
        "dicom",
        lambda root: touch(root, "q/list.csv.gz", gzip.compress(b"a,b\n")),
        "q/list.csv.gz",
        PASSED,
        Reason.UNREAD_TABLE,
    ),
    "labels of a folder": ("images", lambda root: touch(root, "q/labels.csv"), "q/labels.csv", PASSED, ""),
    "hidden": ("images", lambda root: touch(root, "q/.DS_Store"), "q/.DS_Store", PASSED, Reason.HIDDEN),
    "hidden as a picture": ("images", lambda root: touch(root, "q/._1.png"), "q/._1.png", PASSED, ""),
    "of Windows": ("dicom", lambda root: touch(root, "q/Thumbs.db"), "q/Thumbs.db", PASSED, Reason.HIDDEN),
    "thumbnails of a storage server": (
        "images",
        lambda root: png(root, "q/@eaDir/1.png/SYNO_THUMB.png"),
        "q/@eaDir/1.png/SYNO_THUMB.png",
        PASSED,
        Reason.HIDDEN,
    ),
    "deleted": ("dicom", lambda root: dicom(root, "$RECYCLE.BIN/s/IM1"), "$RECYCLE.BIN/s/IM1", PASSED, Reason.HIDDEN),
    "a hidden folder": ("images", lambda root: png(root, ".old/s/1.png"), ".old/s/1.png", PASSED, Reason.HIDDEN),
    "a mask": ("images", lambda root: png(root, "q/1_mask.png"), "q/1_mask.png", PASSED, Reason.NO_PICTURE),
    "a mask of a listed folder": ("frames", lambda root: png(root, "q/1-seg.png"), "q/1-seg.png", PASSED, ""),
    **{
        f"{form} without suffix, {layout}": (
            layout,
            lambda root, f=form: unnamed(root, f),
            "s/IM1",
            LOST,
            Reason.OTHER_FORM,
        )
        for form in ("PNG", "JPEG", "TIFF", "GIF", "WEBP")
        for layout in ("images", "dicom")
    },
    **{
        f"packed {name}": ("dicom", lambda root, n=name: touch(root, n), name, LOST, Reason.OTHER_FORM)
        for name in ("s/1.dcm.gz", "s/1.png.bz2", "s/1.NII.xz")
    },
    "a text": ("images", lambda root: touch(root, "README.txt"), "README.txt", PASSED, Reason.OTHER),
    "an archive": ("images", lambda root: touch(root, "q/more.zip"), "q/more.zip", PASSED, Reason.ARCHIVE),
    "a pipe": ("images", lambda root: os.mkfifo(root / "q" / "pipe"), "q/pipe", PASSED, Reason.NO_FILE),
    "a copy": ("dicom", lambda root: dicom(root, "s/IM1"), "s/IM1", PASSED, Reason.COPY),
}


@pytest.mark.parametrize(("layout", "add", "name", "outcome", "reason"), KINDS.values(), ids=KINDS)
def test_each_file_that_is_not_read_is_accounted_for(
    layout: str, add: Callable[[Path], object], name: str, outcome: Outcome, reason: str, tmp_path: Path
):
    """What stands beside the images is lost or passed over by its kind; the images are read as without it."""
    root = write(tmp_path / "raw", layout)
    clean = accounted(root, layout)
    assert (clean.count(Outcome.LOST), clean.count(Outcome.PASSED)) == (0, 0)
    add(root)
    account = accounted(root, layout)
    entry = account.entries[root / name]
    assert entry.outcome == outcome
    assert entry.reason == (reason or entry.reason) != ""
    assert account.count(Outcome.READ) == clean.count(Outcome.READ) == len(PATIENTS)
    assert account.count(Outcome.LOST) + account.count(Outcome.PASSED) == 1
    assert account.count(Outcome.TABLE) == (layout in {"manifest", "frames"})
    shown = "\n".join(account.lines()) + str(account.counts())
    assert name not in shown.split()
    assert entry.reason in shown
    if outcome == Outcome.LOST:
        with pytest.raises(RawDataError, match=rf"^1 file would be lost \(1 {entry.reason}\), --max-lost is 0: "):
            account.require(0, skip_unreadable=False)
    account.require(1, skip_unreadable=False)


def test_the_limit_of_lost_files(tmp_path: Path):
    """Skipping unreadable files sets the limit aside for them alone, and the advice is what would help."""
    root = write(tmp_path / "raw", "images")
    damaged(root, "s/1.png")
    damaged(root, "s/2.png")
    account = accounted(root)
    with pytest.raises(RawDataError, match="leave them out by --skip-unreadable or --max-lost 2$"):
        account.require(1, skip_unreadable=False)
    account.require(0, skip_unreadable=True)
    linked(root, "q/2.png", "gone")
    account = accounted(root)
    with pytest.raises(RawDataError, match=r"^1 file would be lost \(1 link to nothing\).* by --max-lost 1$"):
        account.require(0, skip_unreadable=True)
    account.require(1, skip_unreadable=True)
    assert account.counts()["lost"] == {"damaged or cut": 2, "link to nothing": 1}


def test_the_account_names_files_and_patients(tmp_path: Path):
    """The file is for its owner alone, has each file once, and is never replaced."""
    root = write(tmp_path / "raw", "manifest")
    content = (root / "q" / "1.png").read_bytes()
    (root / "q" / "1.png").write_bytes(content[:60])
    touch(root, "=1+1.txt")
    account = accounted(root)
    account.write(tmp_path / "account.csv")
    assert stat.S_IMODE((tmp_path / "account.csv").stat().st_mode) == 0o600
    rows = list(csv.DictReader((tmp_path / "account.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == ["'=1+1.txt", "manifest.csv", "p/1.png", "q/1.png", "r/1.png"]
    assert [row["outcome"] for row in rows] == ["passed over", "read as a table", "read", "lost", "read"]
    assert [row["patient"] for row in rows] == ["", "", "p", "q", "r"]
    with pytest.raises(ConfigError, match=r"account\.csv exists: choose another name"):
        account.write(tmp_path / "account.csv")
    with pytest.raises(ConfigError, match="cannot write"):
        account.write(root / "p" / "1.png" / "account.csv")


def test_what_the_options_leave_out(tmp_path: Path):
    """Files of sequences that a choice removes are passed over, with their patients."""
    root = write(tmp_path / "raw", "images")
    account = Account(root)
    sequences, _ = read_sequences(root, "images", refuse=account)
    account.close(sequences, "images")
    account.leave_out(sequences, sequences[1:])
    assert account.reasons(Outcome.PASSED) == {Reason.LEFT_OUT: 1}
    assert account.entries[root / "p" / "1.png"].patient == "p"


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("P1", "p1", "q"), 2),
        (("P 1", "P1", "P  1"), 3),
        (("Jos\u00e9", "Jose\u0301", "q"), 2),
        (("\uff30\uff11", "P1", "q"), 2),
        (("P1", "P10", "P01"), 0),
    ],
)
def test_patients_that_differ_in_writing_only(names: tuple[str, ...], alike: int, tmp_path: Path):
    """Case, blanks, width and Unicode form make no other person; another number does."""
    for name in names:
        png(tmp_path, f"{name}/1.png")
    assert accounted(tmp_path).issues() == ({"alike-patients": alike} if alike else {})


def test_one_file_is_accounted_for(tmp_path: Path):
    """A DICOM file by itself is the whole account."""
    file = DATA / "dicom" / "CT_small.dcm"
    account = Account(file)
    sequences, _ = read_sequences(file, refuse=account)
    account.close(sequences, "dicom")
    assert list(account.entries) == [file]
    account.write(tmp_path / "account.csv")
    assert "read" in (tmp_path / "account.csv").read_text()


@pytest.mark.parametrize("layout", ["dicom", "images", "manifest"])
def test_simulations_lose_nothing_in_silence(layout: str, tmp_path: Path):
    """Without a handler a lost file ends the reading without its name; what is passed over is told."""
    root = write(tmp_path / "raw", layout)
    touch(root, "notes.txt")
    assert read_accounted(root, layout)[1].endswith("; passed over: 1 of no image's type, by its name")
    linked(root, "q/2.png", "gone")
    if layout == "manifest":  # the walk finds it
        assert "link to nothing" not in read_sequences(root, layout)[1]
    with pytest.raises(RawDataError, match=r"^1 file would be lost \(1 link to nothing\)") as lost:
        read_accounted(root, layout)
    assert "2.png" not in str(lost.value)


CHEXPERT, MIMIC, NIH = "patient{0:05}/study1/view1_frontal", "files/p10/p1000000{0}/s5000000{0}/{0}{0}", "{0:08}_000"
NAMES = {  # of the images of patients 1 to 3 in each layout, and of the patients
    "images": ("p{0}/1", "p{0}"),
    "frames": ("s{0}/1", "p{0}"),
    "manifest": ("all/{0}", "p{0}"),
    "chexpert": (CHEXPERT, "patient{0:05}"),
    "mimic-cxr": (MIMIC, "1000000{0}"),
    "nih-chestxray14": (f"images/{NIH}", "{0}"),
    "breakhis": ("SOB_B_TA-14-{0}-40-001", "14-{0}"),
    "class-folders": ("benign/patient{0}_1", "patient{0}"),
    "class-folders by folder": ("benign/{0}/1", "{0}"),
}
TABLES = {  # of each: name, header, and row of a patient
    "frames": ("index.csv", "sequence,patient,label", "s{0},p{0},a"),
    "manifest": ("manifest.csv", "path,patient,label", "all/{0}.png,p{0},a"),
    "chexpert": ("train.csv", ",".join(COLUMNS_OF_CHEXPERT), CHEXPERT + ".png,Frontal" + 14 * ","),
    "mimic-cxr": (
        "mimic-cxr-2.0.0-metadata.csv",
        "dicom_id,subject_id,study_id,StudyDate,StudyTime,ViewPosition",
        "{0}{0},1000000{0},5000000{0},21800101,0,PA",
    ),
    "nih-chestxray14": (
        "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID",
        f"{NIH}.png,No Finding,0,{{0}}",
    ),
}
LOSSES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:60]),
    "empty": lambda file: file.write_bytes(b""),
    "of another format": lambda file: file.rename(file.with_suffix(".heic")),
    "without suffix": lambda file: file.rename(file.with_suffix("")),
    "compressed": lambda file: file.rename(file.with_suffix(".png.gz")),
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("gone")),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", NAMES)
def test_each_lost_patient_is_named(layout: str, loss: str, tmp_path: Path):
    """Patients in are patients out and patients named, in every layout, whatever became of the only image of one."""
    (name, patient), layout = NAMES[layout], layout.partition(" ")[0]
    root = tmp_path / "raw"
    for number in (1, 2, 3):
        png(root, f"{name.format(number)}.png")
    if layout == "class-folders":
        png(root, f"{name.format(4).replace('benign', 'malignant')}.png")
    if layout in TABLES:
        table, header, row = TABLES[layout]
        (root / table).write_text("\n".join([header, *(row.format(number) for number in (1, 2, 3))]))
    LOSSES[loss](root / f"{name.format(2)}.png")
    account = Account(root)
    sequences, recognised = read_sequences(
        root, layout, Choices(views="all") if layout == "mimic-cxr" else CHOICES, account
    )
    sequences = readable(sequences, account)
    account.close(sequences, layout)
    account.write(tmp_path / "account.csv")
    rows = list(csv.DictReader((tmp_path / "account.csv").read_text().splitlines()))
    named = {row["patient"] for row in rows if row["outcome"] != "read"}
    read = {sequence.patient for sequence in sequences}
    assert patient.format(2) not in read
    assert {patient.format(number) for number in (1, 3)} <= read
    known = loss != "gone" or layout in {"images", "frames", "manifest", "chexpert"}
    if known:
        assert patient.format(2) in named
    elif layout in TABLES:
        assert "1 patient of its" in recognised
    assert named <= {patient.format(2), ""}


@pytest.mark.parametrize("layout", ["dicom", "images"])
def test_a_folder_without_an_image_is_counted(layout: str, tmp_path: Path):
    """A patient's folder that was not copied, or has a report alone, is passed over with its name."""
    root = write(tmp_path / "raw", layout)
    (root / "s" / "below").mkdir(parents=True)
    touch(root, "t/report.pdf")
    account = accounted(root)
    assert account.counts()["passed_over"] == {Reason.EMPTY: 2, Reason.OTHER: 1}
    assert [account.entries[root / name].patient for name in "st"] == (["s", "t"] if layout == "images" else ["", ""])


def test_tables_of_chexpert(tmp_path: Path):
    """The tables of findings are read as tables, another one is not, and an image that they do not name is told."""
    write_hospitals(tmp_path)
    root = tmp_path / "north"
    touch(root, "notes.csv", b"a,b\n1,2\n")
    png(root, "patient00001/study1/view9_lateral.png")
    account = Account(root)
    sequences, _ = read_sequences(root, "chexpert", refuse=account)
    account.close(sequences, "chexpert")
    tables = {path.name for path, entry in account.entries.items() if entry.outcome == Outcome.TABLE}
    assert tables == {path.name for path in root.glob("*.csv")} - {"notes.csv"} != set()
    assert account.count(Outcome.READ) == sum(len(sequence.frames) for sequence in sequences)
    assert account.reasons(Outcome.PASSED) == {Reason.UNREAD_TABLE: 1, Reason.UNNAMED: 1}
    assert account.count(Outcome.LOST) == 0
