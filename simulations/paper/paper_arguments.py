"""Arguments of `python -m simulations paper`; the module loads little, so that --help is quick."""

import argparse

from fedpp.cli import add_declared, natural, path, positive
from fedpp.config.hyperparameters import Training
from fedpp.config.run_config import LAYOUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; the protocol or `Settings` has the default of those without one here."""
    parser.add_argument("--data", type=path, required=True, help="folder of raw data")
    parser.add_argument("--out", type=path, required=True, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="resume the same experiment in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier experiment in --out")
    data = parser.add_argument_group("data")
    data.add_argument("--layout", choices=LAYOUTS, help="layout of the raw data (default: auto)")
    data.add_argument("--target", help="X-rays with findings: the finding (default Pleural Effusion)")
    data.add_argument(
        "--uncertain", choices=("ones", "zeros", "ignore"), help="CheXpert, MIMIC-CXR: label -1 (default ignore)"
    )
    data.add_argument(
        "--views", choices=("frontal", "first", "all"), help="CheXpert, MIMIC-CXR: images of a study (default frontal)"
    )
    data.add_argument(
        "--series", choices=("magnification", "slide"), help="BreakHis: what a sequence is (default magnification)"
    )
    data.add_argument("--negative", help="negative label, against all others")
    data.add_argument("--classes", type=_names, help="labels in order, the first is negative")
    data.add_argument("--predict", choices=("sequence", "visit"), help="what has a label (default sequence)")
    data.add_argument("--frames", type=positive, help="frames of a sequence, chosen evenly or padded (default 4)")
    data.add_argument("--size", type=positive, help="height and width in pixels (default 64)")
    data.add_argument("--channels", type=positive, help="1 (grey) or 3 (colour) (default 1)")
    data.add_argument("--folds", type=positive, help="parts of the cross-validation, by patient (default 4)")
    data.add_argument("--validation", type=float, help="share of the patients outside test (default 0.2)")
    data.add_argument("--seed", type=natural, help="of folds, initial weights, batches and keys (default 0)")
    data.add_argument(
        "--seeds", type=positive, help="number of seeds from --seed on (default 3); only the first is run on ciphertext"
    )
    what = parser.add_argument_group("training: networks and sides")
    what.add_argument("--networks", type=_names, help="networks (default cnn,cnn-lstm,cnn-bi-lstm)")
    what.add_argument("--sides", type=_names, help="sides (default plaintext,ciphertext)")
    add_declared(what, Training, ("dtype", "voting", "filters"), {"filters": "the protocol's"})
    what.add_argument(
        "--control-draws",
        type=natural,
        help="controls a training: plaintext moved by one unit in the last place (default 5, in float64 0)",
    )
    what.add_argument("--no-hog", dest="hog", action="store_false", default=None, help="no HOG baseline")
    how = parser.add_argument_group("training: protocol, and exceptions from it")
    how.add_argument(
        "--protocol", choices=("ours", "paper"), default="ours", help="set of hyperparameters (default ours)"
    )
    protocol = dict.fromkeys(("epochs", "batch_size", "learning_rate", "label_smoothing"), "the protocol's")
    add_declared(how, Training, (*protocol, "positive_weight"), protocol)
    how.add_argument("--stopping", choices=("none", "early"), help="early: stop by the validation loss")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
