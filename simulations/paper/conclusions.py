"""Conclusions of an experiment: sentences that depend on its figures."""

from collections.abc import Sequence

from fedpp.config.hyperparameters import MIN_DELTA, PATIENCE
from fedpp.texts import counted

from .paper_settings import NETWORK_NAMES, Settings
from .paper_tables import AucRow, ParityRow, Tables
from .scores import MIN_FOLDS
from .study import Study

_PAPERS_CLAIM = (
    "The paper reports an accuracy above 0.99 for CheXpert and BreakHis. It describes neither a split by patient nor "
    "how sequences were made, so that figure is no target here."
)
_PAPERS_OWN = (
    "From the paper: the three kinds of networks, cross entropy, Adam, cross-validation, the figures accuracy, "
    "precision, specificity and F1, and its protocol (Adam at 0.0001, batches of 256, early stopping, 4 folds), which "
    "--protocol paper runs."
)
_INTERVALS = (
    "The intervals are of the mean over folds (and seeds), with a variance corrected for the training sequences that "
    "folds share. With so few folds they are wide; two networks whose intervals overlap cannot be distinguished."
)
_NO_INTERVAL = "Two folds have no meaningful interval, so none is given: use --folds 3 or more."
_OPTIMISTIC = (
    "The best network's AUC is a little optimistic beside an untuned HOG: the network is chosen over all folds "
    "together, and the validation patients of one fold are test patients of another. The default protocol was chosen "
    "in the same way, on a set of lung ultrasound."
)
_PROTOCOL = (
    "The default protocol was chosen on the validation patients of a set of lung ultrasound: on that set its AUC is a "
    "little optimistic beside an untuned HOG."
)
_BEYOND = (
    "A distance beyond the controls need not be an error: a control is moved once and then rounds as plaintext does, "
    "whereas a ciphertext rounds again in each step (docs/explanation/numerics.md has measurements)"
)
_IN_FLOAT64 = "; --dtype float64 distinguishes the two, since rounding almost vanishes there and an error does not"
ENOUGH_DRAWS = 5  # controls; with fewer, one training in five or more is beyond all of them by chance


def conclusions(study: Study, settings: Settings, results: Tables) -> list[str]:
    """Return the sentences."""
    return [*_parity(settings, results), *_quality(settings, results), *_limits(study, settings)]


def _parity(settings: Settings, results: Tables) -> list[str]:
    rows = results.parity
    if not rows:
        return ["Only one side was run, so the two are not compared."]
    equal = sum(row.equal for row in rows)
    largest, metric = max(row.probability for row in rows), max(row.metric for row in rows)
    differences = (
        f"Ciphertext against plaintext: probabilities differ by at most {largest:.1e}, and in {equal} of {len(rows)} "
        f"trainings all figures of Table 1 are equal (largest difference {metric:.2g})."
    )
    sentences = [differences]
    if settings.stopping == "early":
        sentences.append("Each side stops by its own validation loss, so rounding can also change the best epoch.")
    if settings.control_draws:
        sentences += _beside_controls(settings, rows)
    elif settings.training.dtype == "float32":
        sentences.append(
            "No control was drawn, so rounding cannot be distinguished from other causes: use --control-draws."
        )
    return sentences


def _beside_controls(settings: Settings, rows: Sequence[ParityRow]) -> list[str]:
    draws, trained = settings.control_draws, len(rows)
    within, farther = sum(bool(row.within) for row in rows), sum(row.farther for row in rows) / trained
    largest = max(max(row.control_probabilities) for row in rows)
    rounding = (
        "The effect of rounding: a control, which is plaintext with its initial weights moved by one unit in the last "
        f"place, ends with probabilities up to {largest:.1e} from plaintext's."
    )
    if draws < ENOUGH_DRAWS:
        compared = (
            f"With {counted(draws, 'control')} a training no decision is possible: by chance alone the ciphertext "
            f"would be farther from plaintext than all of them in one training of {draws + 1}, and here it is in "
            f"{trained - within} of {trained}. Use --control-draws {ENOUGH_DRAWS} or more."
        )
    else:
        compared = (
            f"Each training has {draws} controls, and in {within} of {trained} trainings the ciphertext is no farther "
            f"from plaintext than the farthest of them; of one more control, {trained * draws / (draws + 1):.1f} would "
            f"be expected. On average {farther:.1f} of the {draws} are farther off than the ciphertext, where "
            f"{draws / 2:g} would be expected. Over all folds of a network together the ciphertext is no farther for "
            f"{_no_farther(rows)}."
        )
    beyond = [_BEYOND + (_IN_FLOAT64 if settings.training.dtype == "float32" else "") + "."]
    return [rounding, compared, *(beyond if within < trained else [])]


def _quality(settings: Settings, results: Tables) -> list[str]:
    sides = "; ".join(f"{row.side}, {_auc(row)}" for row in results.auc if row.name == results.best)
    name, several = NETWORK_NAMES[results.best], len(settings.networks) > 1
    if several:
        sentences = [f"Best on the validation patients is {name}. On test patients: {sides}.", _OPTIMISTIC]
    else:
        sentences = [f"{name} on test patients: {sides}.", _PROTOCOL]
    sentences += [
        f"{row.name}, in the same folds: {_auc(row)}." for row in results.auc if row.name not in settings.networks
    ]
    if settings.seeds > 1 and "ciphertext" in settings.sides:
        sentences.append(
            f"All {settings.seeds} seeds were run in plaintext; ciphertext was trained with the first seed alone, to "
            "which the parity table applies."
        )
    if any(row.interval for row in results.auc):
        sentences.append(_INTERVALS)
    return [*sentences, *([_NO_INTERVAL] if any(len(row.values) < MIN_FOLDS for row in results.auc) else [])]


def _limits(study: Study, settings: Settings) -> list[str]:
    stopping = (
        f"early stopping by the validation loss ({MIN_DELTA}, {PATIENCE} epochs, best weights), at most "
        f"{counted(settings.training.epochs, 'epoch')}"
        if settings.stopping == "early"
        else f"always {counted(settings.training.epochs, 'epoch')} on both sides, as in the paper on ciphertext"
    )
    learned = settings.training.hyperparameters
    ours = (
        "Our additions: sizes of the networks, folds by patient, AUC, sensitivity, missed diagnoses, spread, controls, "
        f"and here a learning rate of {learned.learning_rate:g}, batches of {learned.batch_size}, label smoothing "
        f"{learned.label_smoothing:g}, {stopping}."
    )
    units = (
        "AUC by patient uses the mean probability over a patient's sequences; sequences of a patient with different "
        f"labels count one by one. All other figures are by sequence, of which there are {len(study.labels)}."
    )
    return [_PAPERS_CLAIM, _PAPERS_OWN, ours, units]


def _no_farther(rows: Sequence[ParityRow]) -> str:
    """Return the networks whose ciphertext's largest difference is at most that of the controls."""
    within = []
    for network in dict.fromkeys(row.network for row in rows):
        of_network = [row for row in rows if row.network == network]
        control = max(max(row.control_probabilities) for row in of_network)
        if max(row.probability for row in of_network) <= control:
            within.append(NETWORK_NAMES[network])
    return ", ".join(within) or "no network"


def _auc(row: AucRow) -> str:
    bounds = f", 95 % interval {row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.interval else ""
    beyond = f", {row.beyond_hog:+.3f} to HOG" if row.beyond_hog is not None else ""
    return f"AUC by patient {row.mean:.3f}{bounds}{beyond}, over {counted(len(row.values), 'fold')}"
