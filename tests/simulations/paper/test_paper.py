"""Command of the paper's experiment, with small networks on stripes in noise."""

import csv
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from paper_data import MIXED, PATIENTS, write_frames
from PIL import Image

from fedpp.config.model_spec import ARCHITECTURES
from fedpp.imaging.readers.chexpert import COLUMNS
from fedpp.imaging.readers.layout import read_sequences
from simulations.__main__ import main
from simulations.paper.experiment_folder import RESULTS
from simulations.paper.paper_command import summary
from simulations.paper.paper_page import render
from simulations.paper.paper_settings import NETWORK_NAMES
from simulations.paper.paper_tables import CHOSEN_BY_FOLD
from simulations.paper.scores import FIGURES, HEADINGS

SMALL = [
    *("--layout", "frames", "--negative", "well", "--frames", "3", "--size", "8", "--filters", "2,3"),
    *("--folds", "2", "--epochs", "2", "--batch-size", "8"),
]
NETWORKS = ("cnn", "cnn-lstm")
FLOAT64 = ("--dtype", "float64", "--seeds", "2", "--control-draws", "1", "--networks", ",".join(NETWORKS))
QUICK = ("--networks", "cnn", "--sides", "plaintext", "--seeds", "1")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "frames"
    write_frames(folder)
    return folder


def paper(raw: Path, out: Path, *more: str) -> int:
    return main(["paper", "--data", str(raw), "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def float64(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole experiment in float64: two networks, both sides, two seeds, one control."""
    out = tmp_path_factory.mktemp("float64")
    assert paper(raw, out, *FLOAT64) == 0
    return out


def record(out: Path) -> dict:
    return json.loads((out / "paper.json").read_text())


def require_equal_sides(result: dict, networks: Sequence[str]) -> None:
    """Every figure of every network and fold is the same on both sides, and probabilities agree to 1e-9."""
    assert len(result["parity"]) == len(networks) * 2
    assert max(row["probability"] for row in result["parity"]) <= 1e-9
    by_fold = {(r["network"], r["seed"], r["fold"], r["side"]): r for r in result["by_fold"]}
    for network in networks:
        for fold in (1, 2):
            plain, encrypted = (by_fold[network, 0, fold, side] for side in ("plaintext", "ciphertext"))
            assert {name: plain[name] for name in FIGURES} == {name: encrypted[name] for name in FIGURES}
    assert {row["metric"] for row in result["parity"]} == {0.0}


def test_in_float64_ciphertext_equals_plaintext_in_every_fold(float64: Path):
    """Both sides have equal figures in every fold."""
    require_equal_sides(record(float64), NETWORKS)


@pytest.mark.slow
def test_in_float64_both_sides_of_the_default_networks_are_equal(raw: Path, tmp_path: Path):
    """Without --networks the experiment has all three, with equal figures on both sides, also after a resumed trial."""
    more = ("--dtype", "float64", "--seeds", "1", "--no-hog")
    assert paper(raw, tmp_path, *more) == 0
    before = record(tmp_path)
    require_equal_sides(before, ARCHITECTURES)
    for path in (*(tmp_path / "runs").glob("cnn-seed0-fold1-ciphertext*"), tmp_path / "paper.json"):
        path.unlink()
    (tmp_path / "paper.html").unlink()
    assert paper(raw, tmp_path, *more, "--resume") == 0
    after = record(tmp_path)
    for row in (*before["by_fold"], *after["by_fold"]):
        del row["seconds"]
    assert after["by_fold"] == before["by_fold"]


def test_the_record_has_the_whole_experiment(float64: Path):
    """Counts, folds, tables, curves, settings and versions are in `paper.json`; later seeds are in plaintext alone."""
    result = record(float64)
    assert (result["data"]["patients"], result["data"]["classes"]) == (PATIENTS, ["well", "ill"])
    assert result["data"]["patients_with_both_labels"] == 1, MIXED
    assert [(f["seed"], f["fold"]) for f in result["folds"]] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [(r["network"], r["side"]) for r in result["networks"]] == [
        (network, side) for network in NETWORKS for side in ("plaintext", "ciphertext")
    ]
    assert [row["name"] for row in result["auc"][-2:]] == [CHOSEN_BY_FOLD, "HOG + logistic regression"]
    assert {len(row["values"]) for row in result["auc"] if row["side"] == "plaintext"} == {4}
    assert {len(row["values"]) for row in result["auc"] if row["side"] == "ciphertext"} == {2}
    assert {(r["side"], r["seed"]) for r in result["by_fold"]} == {
        ("plaintext", 0),
        ("plaintext", 1),
        ("ciphertext", 0),
    }
    assert {len(curve["mean"]) for curve in result["curves"]} == {2}
    assert result["settings"]["dtype"] == "float64"
    assert "scikit-image" in result["versions"]
    assert [line for line in result["conclusions"] if "a little optimistic beside an untuned HOG" in line]
    assert [line for line in result["conclusions"] if line.startswith(f"{CHOSEN_BY_FOLD}, in the same folds: AUC")]
    assert str(float64) not in json.dumps(result)


def test_tables_and_figures_are_files(float64: Path):
    """CSV files of Table 1 and of the curves agree with the record; figures are PNG; there are no other files."""
    result = record(float64)
    with (float64 / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["network"], row["side"]) for row in table] == [(r["network"], r["side"]) for r in result["networks"]]
    for row, expected in zip(table, result["networks"], strict=True):
        assert float(row["accuracy_mean"]) == expected["figures"]["accuracy"]["mean"]
        assert float(row["auc_by_patient_spread"]) == expected["figures"]["auc_by_patient"]["spread"]
    with (float64 / "curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == len(result["curves"]) * 2
    for name in ("figure4.png", "figure5.png"):
        assert (float64 / name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in float64.iterdir()} == {*RESULTS, "settings.json", "runs"}


def test_the_page_renders_all_rows(float64: Path):
    """Every network, side, fold, figure and conclusion is on the page, which loads nothing from elsewhere."""
    result, page = record(float64), (float64 / "paper.html").read_text()
    for name in (
        *(NETWORK_NAMES[network] for network in NETWORKS),
        *HEADINGS.values(),
        "HOG + logistic regression",
        "plaintext",
        "ciphertext",
    ):
        assert name in page
    bodies = [body.count("<tr") for body in re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)]
    assert bodies == [len(result[name]) for name in ("networks", "auc", "by_fold", "parity", "folds")]
    assert page.count("<svg") == 2 * len(NETWORKS)
    assert page.count("<li>") == len(result["conclusions"])
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "<script" not in page


def test_an_experiment_is_resumed(float64: Path, raw: Path, capsys: pytest.CaptureFixture[str]):
    """Missing trials are run, finished ones are not, and the figures equal those of an uninterrupted experiment."""
    before = record(float64)
    missing = [float64 / "runs" / f"cnn-seed0-fold1-{side}.json" for side in ("plaintext", "ciphertext", "control-1")]
    kept = {path: path.stat().st_mtime_ns for path in (float64 / "runs").iterdir() if path not in missing}
    for path in (*missing, float64 / "paper.json", float64 / "paper.html"):
        path.unlink()
    assert paper(raw, float64, *FLOAT64) == 1
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    assert paper(raw, float64, *FLOAT64, "--resume", "--epochs", "3") == 1
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert "has other settings: epochs was 2 and is now 3; resume it with its own" in refusal
    assert "--overwrite" not in refusal
    assert paper(raw, float64, *FLOAT64, "--resume", "--filters", "2,3,4", "--negative", "ill") == 1
    assert "filters was 2,3 and is now 2,3,4, negative was well and is now ill" in capsys.readouterr().err
    assert paper(raw, float64, *FLOAT64, "--resume") == 0
    captured = capsys.readouterr()
    trials = [line for line in captured.err.splitlines() if line.startswith("run ")]
    assert len(trials) == 3
    assert all("of 3: cnn, seed 0, fold 1" in line for line in trials)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = record(float64)
    assert (before["runs_kept_from_before"], after["runs_kept_from_before"]) == (0, len(kept))
    for first, second in zip(before["by_fold"], after["by_fold"], strict=True):
        assert {name: first[name] for name in FIGURES} == pytest.approx({name: second[name] for name in FIGURES})
    assert "Best on the validation patients is" in captured.out


@pytest.fixture(scope="module")
def plaintext(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the quickest experiment: one network in plaintext."""
    out = tmp_path_factory.mktemp("plaintext")
    assert paper(raw, out, *QUICK) == 0
    return out


def contents(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def names_on(page: str) -> set[str]:
    return set(re.findall(r"<div><dt>([^<]*)</dt>", page.partition('id="how"')[2]))


def test_the_page_omits_settings_that_did_not_apply(float64: Path, plaintext: Path):
    """The page of other data has no choices of CheXpert and BreakHis, the page of a CNN has no LSTM width."""
    both, alone = (names_on((out / "paper.html").read_text()) for out in (float64, plaintext))
    assert {"Layout", "Negative", "Dense", "Lstm"} <= both
    assert both - alone == {"Lstm"}
    assert not both & {"Target", "Uncertain", "Views", "Series", "Classes"}


@pytest.mark.parametrize(
    ("table", "image", "shown"),
    [
        (True, "patient00001/study1/view1_frontal.jpg", {"Target", "Uncertain", "Views"}),
        (False, "SOB_B_A-14-22549AB-40-001.png", {"Series"}),
    ],
)
def test_the_page_has_the_settings_of_the_layout_that_was_read(
    plaintext: Path, tmp_path: Path, table: bool, image: str, shown: set[str]
):
    """The page of CheXpert or BreakHis data has the settings of that layout alone."""
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(tmp_path / image)
    if table:
        header, row = ",".join(COLUMNS), ",".join([image, "Frontal", *("1.0" for _ in COLUMNS[2:])])
        (tmp_path / "train.csv").write_text(f"{header}\n{row}\n")
    _, described = read_sequences(tmp_path)
    result = record(plaintext)
    page = render({**result, "data": {**result["data"], "described": described}}, {"accuracy": [], "loss": []})
    assert names_on(page) & {"Target", "Uncertain", "Views", "Series"} == shown


def test_the_summary_explains_its_seconds(float64: Path):
    """Seconds of a fold include compilation, so the ratio follows the median epochs from which it is computed."""
    result = record(float64)
    lines = summary(result).splitlines()[: len(result["networks"])]
    for line, row in zip(lines, result["networks"], strict=True):
        assert f"s a fold with compilation, median epoch {row['seconds_an_epoch']:.3g} s" in line
        ratio = f", ratio of epochs {row['ratio']:.2f}" if row["side"] == "ciphertext" else ""
        assert line.endswith(f" s{ratio}")
        assert "AUC by patient " in line


def test_trainings_of_before_are_counted(plaintext: Path):
    """The page uses singular and plural."""
    result, charts = record(plaintext), {"accuracy": [], "loss": []}
    for count, words in ((1, "1 training before"), (2, "2 trainings before")):
        assert words in " ".join(render({**result, "runs_kept_from_before": count}, charts).split())


def test_trials_of_other_data_are_not_resumed(
    plaintext: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The same data in another folder are resumed; with one image changed they are refused."""
    moved, out = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(raw, moved)
    shutil.copytree(plaintext, out)
    assert paper(moved, out, *QUICK, "--resume") == 0
    assert record(out)["runs_kept_from_before"] == 2
    before = contents(out)
    shutil.copy(moved / "s000" / "00.png", moved / "s000" / "01.png")
    capsys.readouterr()
    assert paper(moved, out, *QUICK, "--resume") == 1
    assert "is of other data" in capsys.readouterr().err.splitlines()[-1]
    assert contents(out) == before


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--negative", "healthy"], "no sequence has the negative label"),
        (["--layout", "chexpert"], "holds no table with CheXpert's columns"),
        (["--folds", "18"], "has no negative or no positive sequence"),
        (["--filters", "2,2,2,2"], "are too small for 4 poolings"),
        (["--size", "2", "--filters", "2"], "are too small for HOG"),
    ],
)
def test_a_refused_experiment_overwrites_nothing(
    plaintext: Path, raw: Path, more: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    """An --overwrite that is refused after the data are read leaves the earlier experiment unchanged."""
    before = contents(plaintext)
    assert paper(raw, plaintext, *QUICK, *more, "--overwrite") == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert contents(plaintext) == before


def test_an_experiment_is_overwritten(plaintext: Path, raw: Path, tmp_path: Path):
    """No trial of the earlier experiment is left or reused."""
    shutil.copytree(plaintext, tmp_path / "out")
    assert paper(raw, tmp_path / "out", *QUICK, "--seed", "5", "--overwrite") == 0
    assert record(tmp_path / "out")["runs_kept_from_before"] == 0
    runs = {path.name for path in (tmp_path / "out" / "runs").iterdir()}
    assert runs == {"cnn-seed5-fold1-plaintext.json", "cnn-seed5-fold2-plaintext.json"}


@pytest.mark.slow
def test_both_sides_stop_early_at_the_same_epoch(tmp_path: Path):
    """In float64 the owner's losses stop the ciphertext at the epoch where Keras's rule stops plaintext.

    The images are noise, so that the loss continues to fall in training and not in validation.
    """
    write_frames(tmp_path / "raw", contrast=0.0)
    raw, out = tmp_path / "raw", tmp_path / "out"
    more = ["--dtype", "float64", "--stopping", "early", "--epochs", "60", "--learning-rate", "0.02"]
    assert paper(raw, out, *more, "--networks", "cnn", "--seeds", "1", "--no-hog") == 0
    result = record(out)
    plain, encrypted = ([r for r in result["by_fold"] if r["side"] == side] for side in ("plaintext", "ciphertext"))
    for first, second in zip(plain, encrypted, strict=True):
        assert (first["epochs"], first["kept_epoch"]) == (second["epochs"], second["kept_epoch"])
        assert first["epochs"] == min(60, first["kept_epoch"] + 10)
        kept = json.loads((out / "runs" / f"cnn-seed0-fold{first['fold']}-plaintext.json").read_text())
        best, epoch = math.inf, 0
        for number, loss in enumerate(kept["curves"]["validation_loss"], start=1):
            if loss < best - 0.001:
                best, epoch = loss, number
        assert first["kept_epoch"] == epoch
    assert min(row["epochs"] for row in plain) < 60
    assert max(row["probability"] for row in result["parity"]) <= 1e-6
    assert [row["name"] for row in result["auc"]] == ["cnn", "cnn"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--networks", "rnn"], "networks: each must be one of cnn, cnn-lstm, cnn-bi-lstm, got 'rnn'"),
        (["--networks", "cnn,cnn"], "networks: 'cnn' stands twice"),
        (["--sides", "clear"], "sides: each must be one of plaintext, ciphertext"),
        (["--folds", "1"], "folds must be a whole number of at least 2, got 1"),
        (["--channels", "2"], "channels must be one of 1, 3, got 2"),
        (["--validation", "1"], "validation must be a finite number of at least 1e-09 and below 1"),
        (["--sides", "plaintext", "--control-draws", "2"], "control draws stand beside both sides"),
        (["--sides", "ciphertext", "--seeds", "2"], "use --seeds 1"),
        (["--resume", "--overwrite"], "choose one of them"),
        (["--target", "Edema,Atelectasis"], "name one with --target"),
        (["--negative", "healthy"], "no sequence has the negative label 'healthy'"),
    ],
)
def test_wrong_arguments_are_one_line(
    raw: Path, tmp_path: Path, more: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    """Bad settings are refused in one line on stderr, and nothing is left that would refuse the right ones."""
    assert paper(raw, tmp_path / "out", *more) == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_option_out_of_range_is_wrong_usage(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The option's bounds are those of the setting, and nothing is started."""
    with pytest.raises(SystemExit) as ended:
        paper(raw, tmp_path / "out", "--label-smoothing", "-1")
    assert ended.value.code == 2
    assert "--label-smoothing: must be a finite number of at least 0 and below 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else_are_left_alone(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Missing data, results within the data and a folder with a table of another kind are refused."""
    assert paper(tmp_path / "typo", tmp_path / "out") == 1
    assert "does not exist" in capsys.readouterr().err
    assert paper(raw, raw / "out") == 1
    assert "apart from the data" in capsys.readouterr().err
    (tmp_path / "table.csv").write_text("precious")
    assert paper(raw, tmp_path, "--overwrite") == 1
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "table.csv").read_text() == "precious"
