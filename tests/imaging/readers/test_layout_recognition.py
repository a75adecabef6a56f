"""Recognition of layouts: which one, why, and the error if there is none."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from PIL import Image
from raw_images import refused_in_one_line, values, write_images, write_table
from unprivileged import unprivileged

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.readers.chexpert import COLUMNS as CHEXPERT
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.survey.examination import examine


def write_frames(folder: Path, header: str = "sequence,patient,label") -> None:
    (folder / "s").mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "s" / "0.png")
    (folder / "index.csv").write_text(f"{header}\ns,p,a\n")


def copy_dicom(folder: Path, name: str) -> Path:
    (folder / name).write_bytes((DATA / "dicom" / name).read_bytes())
    return folder / name


def test_frame_folders_are_recognised(tmp_path: Path):
    """An index with a column "sequence" makes frame folders, and a folder that it does not list is reported."""
    write_frames(tmp_path)
    (tmp_path / "forgotten").mkdir()
    sequences, recognised = read_sequences(tmp_path)
    assert [s.id for s in sequences] == ["s"]
    assert recognised == (
        "frame folders, listed by index.csv: 1 sequence of 1 patient, 1 frame, labels: a 1; "
        "1 folders that it does not list were ignored"
    )


def test_dicom_is_recognised_beside_another_index(tmp_path: Path):
    """DICOM files win over an index.csv that is no index of frame folders, with and without suffix."""
    copy_dicom(tmp_path, "CT_small.dcm").rename(tmp_path / "IM0001")
    (tmp_path / "index.csv").write_text("file,modality\nIM0001,CT\n")
    sequences, recognised = read_sequences(tmp_path)
    assert len(sequences) == 1
    assert recognised == (
        "DICOM folder, by the mark in its files, 1 image file: 1 sequence of 1 patient, 1 frame, without labels"
    )


def test_one_dicom_file_is_recognised():
    """The path of a file is read as DICOM."""
    sequences, recognised = read_sequences(DATA / "dicom" / "examples_ybr_color.dcm")
    assert len(sequences[0].frames) == 30
    assert recognised.startswith("DICOM file, 1 image file: 1 sequence of 1 patient, 30 frames")


def test_a_layout_that_is_named_is_not_guessed(tmp_path: Path):
    """With both kinds in a folder, `layout` decides."""
    write_frames(tmp_path)
    copy_dicom(tmp_path, "CT_small.dcm")
    assert read_sequences(tmp_path, "frames")[0][0].frames[0].shape == (2, 2)
    assert read_sequences(tmp_path, "dicom")[0][0].frames[0].shape == (128, 128)
    with pytest.raises(ConfigError, match="layout must be one of auto, frames, .*, images, got 'nifti'"):
        read_sequences(tmp_path, "nifti")


@pytest.mark.parametrize("layout", ["auto", "frames", "dicom"])
def test_nothing_to_read_is_refused(tmp_path: Path, layout: str):
    """An empty folder, a folder of other things, and a path that does not exist are refused by name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no image")
    for name in ("empty", "other", "absent"):
        with pytest.raises(RawDataError, match=str(tmp_path / name)):
            read_sequences(tmp_path / name, layout)


def test_an_index_without_its_column_is_named(tmp_path: Path):
    """An index.csv without "sequence", and without DICOM beside it, is refused by that column; so are other bytes."""
    write_frames(tmp_path, header="folder,patient,label")
    with pytest.raises(RawDataError, match="has no column sequence, it has patient, label: is its first"):
        read_sequences(tmp_path)
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RawDataError, match="cannot read the table"):
        read_sequences(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    """A single image file is neither layout."""
    file = tmp_path / "0.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(file)
    with pytest.raises(RawDataError, match="is no DICOM file"):
        read_sequences(file)
    with pytest.raises(RawDataError, match="is not a folder"):
        read_sequences(file, "frames")


@pytest.mark.parametrize(
    ("folder", "recognised"),
    [
        (
            "chexpert_layout/site_a",
            (
                "CheXpert, by the header of its table: 264 sequences of 264 patients, 993 frames, labels: "
                "Pleural Effusion 26, no Pleural Effusion 238; by image: Pleural Effusion in 167, no Pleural Effusion "
                "in 826"
            ),
        ),
        (
            "breakhis_layout",
            (
                "BreakHis, by the names of its files: 73 sequences of 45 patients, 493 frames, labels: benign 35, "
                "malignant 38; a sequence is a slide at one magnification, in an order that is not time"
            ),
        ),
    ],
)
def test_real_layouts_are_recognised(folder: str, recognised: str):
    """The real sets are recognised by what they are, and counted."""
    assert read_sequences(DATA / folder)[1] == recognised


def test_choices_reach_the_reader():
    """Another finding gives other labels, and whole slides fewer sequences."""
    edema = read_sequences(DATA / "chexpert_layout" / "site_a", "chexpert", Choices(target="Edema"))[1]
    assert edema.endswith("by image: Edema in 29, no Edema in 964")
    assert len(read_sequences(DATA / "breakhis_layout", "auto", Choices(series="slide"))[0]) == 46


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (Choices(target="Edema"), "target 'Edema' is for layout chexpert or mimic-cxr or nih-chestxray14"),
        (Choices(uncertain="ones"), "uncertain 'ones' is for layout chexpert or mimic-cxr"),
        (Choices(views="all"), "views 'all' is for layout chexpert or mimic-cxr"),
        (Choices(series="slide"), "series 'slide' is for layout breakhis"),
    ],
)
@pytest.mark.parametrize("layout", ["auto", "frames"])
def test_a_choice_of_another_layout_is_refused(tmp_path: Path, choices: Choices, said: str, layout: str):
    """A choice of another layout is refused by name, with its value and what to do."""
    write_frames(tmp_path)
    with pytest.raises(ConfigError) as refused:
        read_sequences(tmp_path, layout, choices)
    assert str(refused.value) == f"{said}, these data are read as frames: leave it out, or choose another layout"


def test_layouts_refuse_each_other_s_choices():
    """CheXpert has no series, BreakHis no target, uncertainty or views."""
    with pytest.raises(ConfigError, match="series 'slide' is for layout breakhis, these data are read as chexpert"):
        read_sequences(DATA / "chexpert_layout" / "site_a", "chexpert", Choices(series="slide"))
    with pytest.raises(
        ConfigError, match="views 'first' is for layout chexpert or mimic-cxr, these data are read as breakhis"
    ):
        read_sequences(DATA / "breakhis_layout", "breakhis", Choices(views="first"))


@pytest.mark.parametrize(("layout", "table"), [("frames", "index.csv"), ("manifest", "manifest.csv")])
def test_a_layout_without_its_table_is_refused(tmp_path: Path, layout: str, table: str):
    """A folder that lacks the table of the layout that was named is refused in one line that says what to do."""
    with pytest.raises(RawDataError) as refused:
        read_sequences(tmp_path, layout)
    assert str(refused.value) == f"{tmp_path} has no {table}: name the folder that has it, or another layout"


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_cannot_be_read_is_named(mode: int):
    """A folder without permissions is named itself, and no table that is looked for in it; a survey says the same."""
    with unprivileged(locked=mode) as folder:
        for read in (read_sequences, examine):
            with pytest.raises(RawDataError) as refused:
                read(folder)
            said = f"cannot read {folder}: Permission denied: check its name and its permissions"
            assert str(refused.value) == said


def test_a_manifest_assigns_splits(tmp_path: Path):
    """The splits of a manifest come with its sequences."""
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "1.png")
    rows = "path,patient,time,label,split\n0.png,p,2020-01-01,a,test\n1.png,q,2020-01-01,b,train\n"
    (tmp_path / "manifest.csv").write_text(rows)
    sequences, recognised = read_sequences(tmp_path)
    assert {s.patient: s.split for s in sequences} == {"p": "test", "q": "train"}
    assert recognised.startswith("files listed by manifest.csv, with its splits: 2 sequences of 2 patients")


def test_folders_of_images_are_patients(tmp_path: Path):
    """Without any table a folder is a patient, a folder below a sequence, the pages of a GIF frames in order."""
    pages = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (10, 20, 30)]
    for name in ("p/b", "p/a", "q"):
        (tmp_path / name).mkdir(parents=True)
        pages[0].save(tmp_path / name / "10.png")
        pages[1].save(tmp_path / name / "9.png")
    pages[0].save(tmp_path / "q" / "11.gif", save_all=True, append_images=pages[1:])
    sequences, recognised = read_sequences(tmp_path)
    assert [(s.patient, s.id, s.label) for s in sequences] == [
        ("p", "a", None),
        ("p", "b", None),
        ("q", "images", None),
    ]
    assert [int(frame[0, 0]) for frame in sequences[2].frames] == [20, 10, 10, 20, 30]
    assert recognised == "folders of images, one a patient: 3 sequences of 2 patients, 9 frames, without labels"
    (tmp_path / "labels.csv").write_text("patient,label\np,ill\nq,well\n")
    assert {s.patient: s.label for s in read_sequences(tmp_path)[0]} == {"p": "ill", "q": "well"}
    pages[0].save(tmp_path / "loose.png")
    with pytest.raises(RawDataError, match="holds loose images"):
        read_sequences(tmp_path)


@pytest.mark.parametrize("layout", ["frames", "manifest", "chexpert", "dicom", "breakhis", "images"])
def test_a_file_that_cannot_be_used_is_skipped_in_each_layout(tmp_path: Path, layout: str):
    """A reader's error for a file reaches `refuse`; without a handler it ends the reading."""
    good, bad = {
        "frames": ("good/1.png", "gone"),
        "manifest": ("good.png", "gone.png"),
        "chexpert": ("patient1/study1/view1_frontal.png", "patient2/study1/view1_frontal.png"),
        "dicom": ("MR_small.dcm", "no_meta.dcm"),
        "breakhis": ("SOB_B_A-14-1-40-001.png", "SOB_B_XX-14-1-40-001.png"),
        "images": ("p/good.png", "q/text.png"),
    }[layout]
    if layout == "dicom":
        copy_dicom(tmp_path, good)
        copy_dicom(tmp_path, bad)
    else:
        write_images(tmp_path, good, *([bad] if layout in {"breakhis", "images"} else []))
    if layout == "images":
        (tmp_path / bad).write_text("no image")
    write_table(tmp_path, layout, (good, "p"), (bad, "q"))
    skipped: list[Path] = []
    sequences, recognised = read_sequences(tmp_path, "auto", Choices(), lambda path, _: skipped.append(path))
    assert skipped == [tmp_path / bad]
    assert len(sequences) == 1
    assert "1 sequence of 1 patient, 1 frame" in recognised
    with pytest.raises(RawDataError, match="line 3" if layout in {"manifest", "chexpert", "frames"} else bad):
        read_sequences(tmp_path)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("frames", "s/1.png s/2.png"),
        ("manifest", "1.png 2.png"),
        ("chexpert", "patient1/study1/view1_frontal.png patient1/study2/view1_frontal.png"),
        ("breakhis", "SOB_B_A-14-1-40-001.png SOB_B_A-14-1-40-002.png"),
        ("images", "p/1.png p/2.png"),
    ],
)
def test_pixels_are_read_on_access(tmp_path: Path, layout: str, names: str):
    """An image that is damaged behind its header stops only its own use; frames can be sent to another process."""
    first, second = names.split()
    write_images(tmp_path, first, second)
    (tmp_path / second).write_bytes((tmp_path / second).read_bytes()[:45])
    write_table(tmp_path, layout, (first, "p"), (second, "p"))
    (sequence,), _ = read_sequences(tmp_path, layout)
    frames = pickle.loads(pickle.dumps(sequence.frames))  # noqa: S301  # our own bytes
    assert values(frames[:1]) == [1]
    with pytest.raises(RawDataError, match="cannot read the image"):
        frames[1]


def test_a_label_of_two_lines_is_refused(tmp_path: Path):
    """A quote that is not closed would put the next rows, with their patients, into a public name of a class."""
    write_frames(tmp_path)
    (tmp_path / "index.csv").write_text('sequence,patient,label\ns,p,"a\nb"\n')
    with refused_in_one_line("line 2 has a quote that is not closed", hidden='"a'):
        read_sequences(tmp_path)


def test_a_folder_too_high_is_refused(tmp_path: Path):
    """Where the folders have tables of their own, they are no patients; perhaps they are, so none is named."""
    manifest = ("c", "manifest.csv", "path,patient,label", "manifest.csv")
    for name, table, header, named in (
        ("a", "train.csv", None, "a table of findings"),
        ("b", "index.csv", "sequence,patient,label", "index.csv"),
        manifest,
    ):
        folder = tmp_path / name / "MEIER"
        (folder / "p").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "p" / "1.png")
        (folder / table).write_text(header or ",".join(CHEXPERT))
        message = f"{tmp_path / name} is one folder too high: a folder in it has {named} of its own"
        with refused_in_one_line(message, hidden="MEIER"):
            read_sequences(tmp_path / name)


def test_so_many_labels_that_they_may_name_patients_are_counted(tmp_path: Path):
    """A terminal shows labels, but not those of a column that was taken for the labels by mistake."""
    for number in range(33):
        (tmp_path / f"p{number}").mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"p{number}" / "1.png")
    for labels, said in ((32, "labels: MEIER 0 2, MEIER 1 1"), (33, "33 different labels")):
        rows = "".join(f"p{number},MEIER {number % labels}\n" for number in range(33))
        (tmp_path / "labels.csv").write_text(f"patient,label\n{rows}")
        _, line = read_sequences(tmp_path)
        assert said in line
    assert "MEIER" not in line
