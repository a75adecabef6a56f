"""What a reader may conclude from an experiment, in sentences that its figures decide."""

from collections.abc import Sequence

from fedpp.config.hyperparameters import MIN_DELTA, PATIENCE

from .paper_settings import NETWORK_NAMES, Settings
from .paper_tables import AucRow, ParityRow, Tables
from .scores import MIN_FOLDS
from .study import Study

_PAPERS_CLAIM = (
    "The paper reports an accuracy above 0.99 for CheXpert and BreakHis. It says nothing of a split by patient, nor of "
    "how sequences were made, so that figure is no target here."
)
_PAPERS_OWN = (
    "The paper's: the three kinds of networks, cross entropy, Adam, cross-validation, the figures accuracy, precision, "
    "specificity and F1, and its protocol (Adam at 0.0001, batches of 256, early stopping, 4 folds), which --protocol "
    "paper runs."
)
_INTERVALS = (
    "The intervals are of the mean over folds (and seeds), with a variance corrected for the training sequences that "
    "folds share; with so few folds they are wide, and two networks whose intervals overlap are not told apart."
)
_NO_INTERVAL = "Two folds have no interval that means anything, so none is given: use --folds 3 or more."
_OPTIMISTIC = (
    "The best network's AUC is a little optimistic beside an untuned HOG: it is chosen over all folds together, and "
    "the validation patients of one are test patients of another; the default protocol was chosen likewise, on a set "
    "of lung ultrasound."
)
_PROTOCOL = (
    "The default protocol was chosen on the validation patients of a set of lung ultrasound: there, its AUC is a "
    "little optimistic beside an untuned HOG."
)
_BEYOND = (
    "Farther than the controls need not be an error: a control is moved once and then rounds as its twin does, whereas "
    "a ciphertext rounds anew in each step (docs/numerics.md has measurements)"
)
_IN_FLOAT64 = "; --dtype float64 tells the two apart, as rounding all but vanishes there and an error does not"
ENOUGH_DRAWS = 5  # of controls; with fewer, one training in five or more is beyond all of them by chance


def conclusions(study: Study, settings: Settings, results: Tables) -> list[str]:
    """Return the sentences."""
    return [*_parity(settings, results), *_quality(settings, results), *_limits(study, settings)]


def _parity(settings: Settings, results: Tables) -> list[str]:
    rows = results.parity
    if not rows:
        return ["One side alone was run, so nothing is said about the other."]
    equal = sum(row.equal for row in rows)
    largest, metric = max(row.probability for row in rows), max(row.metric for row in rows)
    apart = (
        f"Ciphertext against plaintext: probabilities differ by {largest:.1e} at most, and in {equal} of {len(rows)} "
        f"trainings no figure of Table 1 differs at all (largest difference {metric:.2g})."
    )
    said = [apart]
    if settings.stopping == "early":
        said.append("Each side stopped by its own validation loss, so rounding can also give it another best epoch.")
    if settings.control_draws:
        said += _beside_controls(settings, rows)
    elif settings.dtype == "float32":
        said.append("No control was drawn, so nothing tells rounding from anything else: use --control-draws.")
    return said


def _beside_controls(settings: Settings, rows: Sequence[ParityRow]) -> list[str]:
    draws, trained = settings.control_draws, len(rows)
    within, farther = sum(bool(row.within) for row in rows), sum(row.farther for row in rows) / trained
    largest = max(max(row.control_probabilities) for row in rows)
    rounding = (
        "What rounding does: a control, which is plaintext with its initial weights moved by one unit in the last "
        f"place, ends with probabilities up to {largest:.1e} from plaintext's."
    )
    if draws < ENOUGH_DRAWS:
        verdict = (
            f"With {counted(draws, 'control')} a training nothing can be decided: by chance alone the ciphertext would "
            f"be farther from plaintext than all of them in one training of {draws + 1}, and here it is in "
            f"{trained - within} of {trained}. Use --control-draws {ENOUGH_DRAWS} or more."
        )
    else:
        verdict = (
            f"Each training has {draws} controls, and in {within} of {trained} trainings the ciphertext is no farther "
            f"from plaintext than the farthest of them; were it one more control, {trained * draws / (draws + 1):.1f} "
            f"would be expected. On average {farther:.1f} of the {draws} are farther off than the ciphertext; likewise "
            f"{draws / 2:g} would be expected. Over all folds of a network together it is no farther for "
            f"{_no_farther(rows)}."
        )
    beyond = [_BEYOND + (_IN_FLOAT64 if settings.dtype == "float32" else "") + "."]
    return [rounding, verdict, *(beyond if within < trained else [])]


def _quality(settings: Settings, results: Tables) -> list[str]:
    sides = "; ".join(f"{row.side}, {_auc(row)}" for row in results.auc if row.name == results.best)
    name, several = NETWORK_NAMES[results.best], len(settings.networks) > 1
    said = [f"Best on the validation patients is {name}. On test patients: {sides}."] if several else []
    said += [_OPTIMISTIC] if several else [f"{name} on test patients: {sides}.", _PROTOCOL]
    said += [f"{row.name}, in the same folds: {_auc(row)}." for row in results.auc if row.name not in settings.networks]
    if settings.seeds > 1 and "ciphertext" in settings.sides:
        said.append(
            f"All {settings.seeds} seeds were run in plaintext; ciphertext was trained with the first alone, and its "
            "parity is shown for that."
        )
    if any(row.interval for row in results.auc):
        said.append(_INTERVALS)
    return [*said, *([_NO_INTERVAL] if any(len(row.values) < MIN_FOLDS for row in results.auc) else [])]


def _limits(study: Study, settings: Settings) -> list[str]:
    stopping = (
        f"early stopping by the validation loss ({MIN_DELTA}, {PATIENCE} epochs, best weights), at most "
        f"{counted(settings.epochs, 'epoch')}"
        if settings.stopping == "early"
        else f"always {counted(settings.epochs, 'epoch')} on both sides, as the paper has it on ciphertext"
    )
    ours = (
        "Ours: sizes of the networks, folds by patient, AUC, sensitivity, missed diagnoses, spread, controls, and here "
        f"a learning rate of {settings.learning_rate:g}, batches of {settings.batch_size}, label smoothing "
        f"{settings.label_smoothing:g}, {stopping}."
    )
    units = (
        "AUC by patient is of the mean probability over a patient's sequences; where a patient's sequences bear "
        f"different labels each counts by itself. All else is by sequence, of which there are {len(study.labels)}."
    )
    return [_PAPERS_CLAIM, _PAPERS_OWN, ours, units]


def _no_farther(rows: Sequence[ParityRow]) -> str:
    """Return the networks whose ciphertext's largest difference is at most the controls' largest."""
    within = []
    for network in dict.fromkeys(row.network for row in rows):
        of_network = [row for row in rows if row.network == network]
        control = max(max(row.control_probabilities) for row in of_network)
        if max(row.probability for row in of_network) <= control:
            within.append(NETWORK_NAMES[network])
    return ", ".join(within) or "no network"


def counted(count: int, noun: str) -> str:
    """Return a number of things as one says it: 1 epoch, 2 epochs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _auc(row: AucRow) -> str:
    bounds = f", 95 % interval {row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.interval else ""
    beyond = f", {row.beyond_hog:+.3f} to HOG" if row.beyond_hog is not None else ""
    return f"AUC by patient {row.mean:.3f}{bounds}{beyond}, over {counted(len(row.values), 'fold')}"
