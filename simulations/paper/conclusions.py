"""What a reader may conclude from an experiment, in sentences that its figures decide."""

from fedpp.recipe import MIN_DELTA, PATIENCE

from .settings import NETWORK_NAMES, Settings
from .study import Study
from .tables import AucRow, Tables

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
_OPTIMISTIC = (
    "The best network's AUC is a little optimistic beside an untuned HOG: it is chosen over all folds together, and "
    "the validation patients of one are test patients of another; the default protocol was chosen likewise, on a set "
    "of lung ultrasound."
)


def conclusions(study: Study, settings: Settings, results: Tables) -> list[str]:
    """Return the sentences."""
    return [*_parity(settings, results), *_quality(settings, results), *_limits(study, settings)]


def _parity(settings: Settings, results: Tables) -> list[str]:
    rows = results.parity
    if not rows:
        return ["One side alone was run, so nothing is said about the other."]
    equal, cells = sum(row.equal for row in rows), _trainings(len(rows))
    largest, metric = max(row.probability for row in rows), max(row.metric for row in rows)
    apart = (
        f"Ciphertext against plaintext: probabilities differ by {largest:.1e} at most, and in {equal} of {cells} "
        f"no figure of Table 1 differs at all (largest difference {metric:.2g})."
    )
    said = [apart]
    if settings.stopping == "early":
        said.append("Each side stopped by its own validation loss, so rounding can also give it another best epoch.")
    judged = [row for row in rows if row.within is not None]
    if judged:
        within, draws = sum(bool(row.within) for row in judged), settings.control_draws
        control = max(max(row.control_probabilities) for row in judged)
        said.append(
            f"What rounding does: plaintext, its initial weights moved by one unit in the last place, ends up to "
            f"{control:.1e} from itself. The ciphertext is within the largest of {draws} such draws in {within} of "
            f"{cells}, and over all folds of a network together in {_by_network(results)} networks. If it is rounding "
            f"and nothing else, one in {draws + 1} is beyond by chance, and half the draws lie farther off than the "
            f"ciphertext: {_mean_farther(results):.1f} of {draws} did."
        )
    elif settings.dtype == "float32":
        said.append("No control was drawn, so nothing tells rounding from anything else: use --control-draws.")
    return said


def _quality(settings: Settings, results: Tables) -> list[str]:
    said = [
        f"Best on the validation patients is {NETWORK_NAMES[row.name]}; on test patients, {row.side}: {_auc(row)}."
        for row in results.auc
        if row.name == results.best
    ]
    said.append(_OPTIMISTIC)
    said += [f"{row.name}, in the same folds: {_auc(row)}." for row in results.auc if row.name not in settings.networks]
    if settings.seeds > 1 and "ciphertext" in settings.sides:
        said.append(
            f"All {settings.seeds} seeds were run in plaintext; ciphertext was trained with the first alone, and its "
            "parity is shown for that."
        )
    return [*said, _INTERVALS]


def _limits(study: Study, settings: Settings) -> list[str]:
    stopping = (
        f"early stopping by the validation loss ({MIN_DELTA}, {PATIENCE} epochs, best weights), at most "
        f"{settings.epochs} epochs"
        if settings.stopping == "early"
        else f"a fixed number of {settings.epochs} epochs on both sides, as the paper has it on ciphertext"
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


def _by_network(results: Tables) -> str:
    """Return in how many networks the ciphertext's largest difference is at most the controls' largest."""
    networks = list(dict.fromkeys(row.network for row in results.parity))
    within = 0
    for network in networks:
        rows = [row for row in results.parity if row.network == network]
        control = max(max(row.control_probabilities) for row in rows)
        within += max(row.probability for row in rows) <= control
    return f"{within} of {len(networks)}"


def _mean_farther(results: Tables) -> float:
    return sum(row.farther for row in results.parity) / len(results.parity)


def _trainings(count: int) -> str:
    return f"{count} trainings" if count != 1 else "1 training"


def _auc(row: AucRow) -> str:
    bounds = f", 95 % interval {row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.interval else ""
    beyond = f", {row.beyond_hog:+.3f} to HOG" if row.beyond_hog is not None else ""
    return f"AUC by patient {row.mean:.3f}{bounds}{beyond}, over {len(row.values)} folds"
