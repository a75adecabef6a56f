"""Arithmetic of the paper's tables, against numbers calculated by hand."""

import re

import numpy as np
import pytest
from paper_data import write_frames
from sklearn.metrics import roc_auc_score

from fedpp.config.hyperparameters import Dtype
from fedpp.errors import ConfigError
from simulations.paper.conclusions import conclusions
from simulations.paper.experiment import Outcome, Progress, Run, all_runs
from simulations.paper.learning_curves import _curve, curves
from simulations.paper.paper_record import table_rows
from simulations.paper.paper_settings import PROTOCOLS, Settings
from simulations.paper.paper_tables import CHOSEN_BY_FOLD, _median_epoch, tables
from simulations.paper.scores import Summary, auc_by_patient, interval, mixed_patients
from simulations.paper.study import Study, folds, prepare_study
from simulations.paper.trial import CURVES, Trial

OPTIONS = {"negative": "well", "frames": 3, "size": 8, "filters": (2, 3), "folds": 2, "networks": ("cnn",)}
SETTINGS = Settings.chosen("ours", {**OPTIONS, "seeds": 1, "control_draws": 2})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("paper")
    write_frames(root / "raw")
    return prepare_study(SETTINGS, root / "raw", root / "dataset", print)


def trial(study: Study, wrong: tuple[int, ...] = (), sure: float = 0.75, epochs: int = 3, second: float = 1.0) -> Trial:
    """Return a training that classifies all sequences right but those in `wrong`."""
    positive = study.labels.astype(float)
    positive[list(wrong)] = 1 - positive[list(wrong)]
    p = np.where(positive > 0, sure, 1 - sure)
    figures = {name: tuple(0.1 * (epoch + 1) for epoch in range(epochs)) for name in CURVES}
    seconds = (9.0, *(second for _ in range(epochs - 1)))
    return Trial(tuple((1 - value, value) for value in p.tolist()), figures, seconds, epochs)


def outcome(
    study: Study,
    *,
    encrypted_sure: float,
    control_sure: float,
    wrong: tuple[int, ...],
    settings: Settings = SETTINGS,
) -> Outcome:
    """Return hand-made trials: those of fold 2 misclassify `wrong`, HOG each fold's first test sequence."""
    cut = folds(study, settings, 0)
    runs = tuple(all_runs(settings, cut))
    made = {"plaintext": (0.75, 1.0), "ciphertext": (encrypted_sure, 3.0), "control": (control_sure, 1.0)}
    trials = tuple(
        trial(study, wrong if run.fold.number else (), made[run.side][0], 3 + run.fold.number, made[run.side][1])
        for run in runs
    )
    hog = {(0, f.number): trial(study, (int(f.test[0]),)).array for f in cut}
    return Outcome(tuple(cut), runs, trials, hog)


def test_auc_by_patient_is_of_the_mean_over_a_patient():
    """A (0.9, 0.1 -> 0.5) and b (0.6) are ill, c (0.55) and d (0.2, 0.3 -> 0.25) are not: 3 of 4 pairs are in order."""
    patients = np.array(["a", "a", "b", "c", "d", "d"])
    positive = np.array([True, True, True, False, False, False])
    scores = np.array([0.9, 0.1, 0.6, 0.55, 0.2, 0.3])
    assert auc_by_patient(positive, patients, scores) == 0.75
    assert auc_by_patient(positive, patients, np.full(6, 0.3)) == 0.5
    assert auc_by_patient(positive[:3], patients[:3], scores[:3]) is None


def test_a_patient_with_both_labels_counts_by_sequence():
    """The sequences of a partly ill patient count one by one, so one patient can make a pair."""
    patients = np.array(["a", "a", "b"])
    positive = np.array([True, False, False])
    assert auc_by_patient(positive, patients, np.array([0.8, 0.2, 0.9])) == 0.5
    assert mixed_patients(positive, patients).tolist() == ["a"]


def test_auc_of_single_sequences_is_scikit_learn_s():
    """With one sequence a patient, AUC by patient is scikit-learn's AUC."""
    generator = np.random.default_rng(0)
    positive, scores = generator.integers(2, size=50) > 0, generator.integers(20, size=50) / 20
    expected = roc_auc_score(positive, scores)
    assert auc_by_patient(positive, np.arange(50).astype(str), scores) == pytest.approx(expected, abs=1e-12)


def test_mean_spread_and_interval_by_hand():
    """0.8, 0.9, 0.7, 0.8: mean 0.8, deviation sqrt(0.02 / 3); t(3) = 3.1824; variance of the mean (1/4 + 1/2) s^2."""
    values = [0.8, 0.9, 0.7, 0.8]
    assert Summary.of([*values, None]) == Summary(pytest.approx(0.8), pytest.approx((0.02 / 3) ** 0.5), 4)
    assert Summary.of([0.3]) == Summary(0.3, None, 1)
    assert Summary.of([None]) == Summary(None, None, 0)
    half = 3.182446 * (0.75 * 0.02 / 3) ** 0.5
    assert interval(values, 0.5) == pytest.approx((0.8 - half, 0.8 + half), abs=1e-6)
    assert interval(values[:3], 0.5) is not None
    assert interval(values[:2], 0.5) is None  # it would be 12.7 deviations wide, and more


def test_table_1_is_the_mean_over_folds(study: Study):
    """One fold all right, one with a positive sequence missed: each figure and its spread follow."""
    second = folds(study, SETTINGS, 0)[1]
    missed = int(second.test[study.labels[second.test] > 0][0])
    results = tables(study, SETTINGS, outcome(study, encrypted_sure=0.75, control_sure=0.75, wrong=(missed,)))
    plain, encrypted = results.networks
    positives, tested = int((study.labels[second.test] > 0).sum()), len(second.test)
    found = (positives - 1) / positives
    for name, of_second in {
        "accuracy": (tested - 1) / tested,
        "precision": 1.0,
        "sensitivity": found,
        "specificity": 1.0,
        "f1": 2 * found / (1 + found),
        "missed_diagnosis_rate": 1 - found,
    }.items():
        of_first = 0.0 if name == "missed_diagnosis_rate" else 1.0
        spread = abs(of_first - of_second) / 2**0.5
        expected = Summary(pytest.approx((of_first + of_second) / 2), pytest.approx(spread), 2)
        assert plain.figures[name] == encrypted.figures[name] == expected, name
    assert (plain.epochs.mean, plain.seconds.mean) == (3.5, 9 + 2.5)
    assert (plain.seconds_an_epoch, plain.ratio, encrypted.ratio) == (1.0, None, 3.0)
    first_row = table_rows(results.networks)[0]
    assert (first_row["network"], first_row["sensitivity_mean"]) == ("cnn", pytest.approx((1 + found) / 2))
    assert first_row["parameters"] == 2 * 9 + 2 + 18 * 3 + 3 + 2 * 2 * 3 * 64 + 64 + 64 * 2 + 2


def test_the_first_epoch_is_not_timed(study: Study):
    """It may include compilation (9 s here): the median is of the other epochs, or of it alone if there is no other."""
    assert _median_epoch([trial(study, epochs=2), trial(study, epochs=2)]) == 1.0
    assert _median_epoch([trial(study, epochs=1)]) == 9.0


@pytest.mark.parametrize(("control", "within"), [(0.72, True), (0.7305, False)])
def test_parity_is_within_the_largest_control(study: Study, control: float, within: bool):
    """The ciphertext is 0.02 from plaintext: within a control that is 0.03 off, beyond one that is 0.0195 off."""
    results = tables(study, SETTINGS, outcome(study, encrypted_sure=0.73, control_sure=control, wrong=()))
    assert [row.fold for row in results.parity] == [0, 1]
    for row in results.parity:
        assert row.probability == pytest.approx(0.02)
        assert row.control_probabilities == pytest.approx((0.75 - control,) * 2)
        assert row.within is within
        assert row.farther == (2 if within else 0)
        assert row.equal  # no decision differs, nor the order of the scores


def test_the_auc_table_compares_with_hog(study: Study):
    """HOG misclassifies one test sequence a fold, the network none; both rows and the difference show it."""
    results = tables(study, SETTINGS, outcome(study, encrypted_sure=0.75, control_sure=0.75, wrong=()))
    plain, encrypted, hog = results.auc
    assert (plain.name, plain.side, encrypted.side) == ("cnn", "plaintext", "ciphertext")
    assert plain.values == encrypted.values == (1.0, 1.0)
    assert plain.interval is None  # of two folds
    assert hog.mean == pytest.approx(np.mean(hog.values))
    assert hog.mean < 1.0
    assert plain.beyond_hog == pytest.approx(1 - hog.mean)
    assert results.best == "cnn"


def test_the_auc_has_an_interval_of_three_folds(study: Study):
    """The interval contains the mean, and is within 0 and 1."""
    settings = SETTINGS.changed(folds=3)
    made = outcome(study, encrypted_sure=0.75, control_sure=0.75, wrong=(), settings=settings)
    plain, _, hog = tables(study, settings, made).auc
    assert plain.interval == (1.0, 1.0)
    assert hog.interval is not None
    assert 0 <= hog.interval[0] <= hog.mean <= hog.interval[1] <= 1


def sentences(study: Study, settings: Settings, control_sure: float) -> list[str]:
    """Return the conclusions with the ciphertext 0.02 from plaintext."""
    made = outcome(study, encrypted_sure=0.73, control_sure=control_sure, wrong=(), settings=settings)
    return conclusions(study, settings, tables(study, settings, made))


def test_few_controls_allow_no_decision(study: Study):
    """With one control, rounding alone is beyond it in half of the trainings: the sentence recommends more controls."""
    line = next(
        line for line in sentences(study, SETTINGS.changed(control_draws=1), 0.74) if "no decision is possible" in line
    )
    assert line.startswith("With 1 control a training no decision is possible: by chance alone")
    assert line.endswith("in one training of 2, and here it is in 2 of 2. Use --control-draws 5 or more.")


@pytest.mark.parametrize(
    ("control", "within", "farther", "networks"), [(0.72, 2, "5.0", "CNN"), (0.74, 0, "0.0", "no network")]
)
def test_controls_are_compared_with_chance(study: Study, control: float, within: int, farther: str, networks: str):
    """Of two trainings with five controls each, 2 x 5/6 are within by chance, and 2.5 controls are farther off."""
    assert (
        f"Each training has 5 controls, and in {within} of 2 trainings the ciphertext is no farther from plaintext "
        "than the farthest of them; of one more control, 1.7 would be expected. "
        f"On average {farther} of the 5 are farther off than the ciphertext, where 2.5 would be expected. "
        f"Over all folds of a network together the ciphertext is no farther for {networks}."
    ) in sentences(study, SETTINGS.changed(control_draws=5), control)


@pytest.mark.parametrize(
    ("dtype", "control", "expected"),
    [("float32", 0.72, ""), ("float32", 0.74, "--dtype float64"), ("float64", 0.74, ".")],
)
def test_a_ciphertext_beyond_its_controls_is_explained(study: Study, dtype: Dtype, control: float, expected: str):
    """The sentence is there only if it is beyond, and recommends float64 only if that was not used."""
    lines = sentences(study, SETTINGS.changed(control_draws=5, dtype=dtype), control)
    found = [
        line for line in lines if "rounds again in each step (docs/explanation/numerics.md has measurements)" in line
    ]
    assert len(found) == bool(expected)
    assert [("--dtype float64" in line) for line in found] == [expected == "--dtype float64"] * len(found)


def test_sentences_fit_one_network_and_two_folds(study: Study):
    """One network is not the best of several, and two folds have no interval."""
    lines = sentences(study, SETTINGS.changed(epochs=1), 0.74)
    of_network = [line for line in lines if line.startswith("CNN on test patients: ")]
    assert len(of_network) == 1
    assert re.fullmatch(r".*: plaintext, AUC by patient 1.000, \S+ to HOG, over 2 folds; ciphertext, .*", of_network[0])
    assert not [line for line in lines if "Best on" in line or "95 % interval" in line or "The intervals" in line]
    assert [line for line in lines if line.startswith("Two folds have no meaningful interval")]
    assert [line for line in lines if "always 1 epoch on both sides" in line]


def test_a_network_is_chosen_by_the_fold_s_own_validation(study: Study):
    """In fold 1 the LSTM is right in validation and wrong in test, in fold 2 the CNN is right: AUC 0 and 1.

    By test, or by validation over both folds, the CNN would be chosen: it is right in either test.
    """
    settings = Settings.chosen(
        "ours", {**OPTIONS, "networks": ("cnn", "cnn-lstm"), "sides": ("plaintext",), "seeds": 1}
    )
    cut = folds(study, settings, 0)
    runs = tuple(all_runs(settings, cut))
    wrong = {("cnn", 0): cut[0].validation, ("cnn-lstm", 0): cut[0].test, ("cnn-lstm", 1): cut[1].validation}
    trials = tuple(trial(study, tuple(wrong.get((run.network, run.fold.number), ()))) for run in runs)
    hog = {(0, fold.number): trial(study, (int(fold.test[0]),)).array for fold in cut}
    results = tables(study, settings, Outcome(tuple(cut), runs, trials, hog))
    chosen, baseline = results.auc[-2:]
    assert (results.best, chosen.name, chosen.side) == ("cnn", CHOSEN_BY_FOLD, "plaintext")
    assert chosen.values == (0.0, 1.0)
    assert chosen.beyond_hog == pytest.approx(0.5 - baseline.mean)


def test_curves_are_means_over_the_folds_that_still_train(study: Study):
    """Fold 1 ends after epoch 3 and fold 2 after 4: the last point is of one fold."""
    made = curves(SETTINGS, outcome(study, encrypted_sure=0.75, control_sure=0.75, wrong=()))
    assert len(made) == 2 * len(CURVES)
    assert made[0].folds == (2, 2, 2, 1)
    assert made[0].mean == made[0].lowest == made[0].highest == pytest.approx((0.1, 0.2, 0.3, 0.4))
    curve = _curve("cnn", "plaintext", "training_loss", [(1.0, 4.0), (3.0,)])
    assert (curve.mean, curve.lowest, curve.highest, curve.folds) == ((2.0, 4.0), (1.0, 4.0), (3.0, 4.0), (2, 1))


def test_the_time_left_counts_ciphertext_three_times(study: Study):
    """Before any run on ciphertext, one is expected to take as long as three in plaintext."""
    fold = folds(study, SETTINGS, 0)[0]
    runs = [Run("cnn", fold, side) for side in ("plaintext", "ciphertext", "control")]
    progress = Progress(runs, 1)
    progress._spent[False].append(10.0)
    progress._waiting = runs[1:]
    assert progress.left() == 40.0


def test_defaults_of_draws_and_seeds():
    """Controls are drawn in float32 if both sides are run; seeds beyond the first need plaintext."""
    assert Settings.chosen("ours", {}).control_draws == 5
    assert Settings.chosen("ours", {"dtype": "float64"}).control_draws == 0
    encrypted = Settings.chosen("paper", {"sides": ("ciphertext",)})
    assert (encrypted.control_draws, encrypted.seeds, encrypted.stopping) == (0, 1, "early")
    assert encrypted.training.hyperparameters.batch_size == 256


def test_the_protocols_set_the_same_settings():
    """Neither protocol leaves a value to the other, or to a default."""
    ours, paper = (set(values) for values in PROTOCOLS.values())
    assert ours == paper == {"stopping", "epochs", "batch_size", "learning_rate", "label_smoothing", "filters"}


def test_hyperparameters_are_checked_before_any_data_are_read():
    """Settings refuse hyperparameters out of range, such as a batch that is too large."""
    with pytest.raises(ConfigError, match="batch-size must be a whole number from 1 to 4096, got 5000"):
        Settings.chosen("ours", {"batch_size": 5000})
    with pytest.raises(ConfigError, match="positive-weight must be a finite number of at least 0"):
        Settings.chosen("ours", {"positive_weight": float("inf")})
    with pytest.raises(ConfigError, match="positive-weight 0 is of a federation"):
        Settings.chosen("ours", {"positive_weight": 0.0})
