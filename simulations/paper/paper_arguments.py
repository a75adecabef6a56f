"""The arguments of `python -m simulations paper`; they load nothing, so that --help of any command is quick."""

import argparse

from fedpp.cli import natural, path, positive, rate
from fedpp.config.run_config import DTYPES, LAYOUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; those without a default here take the protocol's, or that of `Settings`."""
    parser.add_argument("--data", type=path, required=True, help="folder of raw data")
    parser.add_argument("--out", type=path, required=True, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds of the same experiment")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier experiment in --out")
    data = parser.add_argument_group("data")
    data.add_argument("--layout", choices=LAYOUTS)
    data.add_argument("--target", help="CheXpert: the finding (default Pleural Effusion)")
    data.add_argument("--uncertain", choices=("ones", "zeros", "ignore"), help="CheXpert: label -1 (default ignore)")
    data.add_argument("--views", choices=("frontal", "first", "all"), help="CheXpert: of a study (default frontal)")
    data.add_argument("--series", choices=("magnification", "slide"), help="BreakHis (default magnification)")
    data.add_argument("--negative", help="this label against all the rest")
    data.add_argument("--classes", type=_names, help="labels in order, the first is negative")
    data.add_argument("--predict", choices=("sequence", "visit"), help="what a label is for (default sequence)")
    data.add_argument("--frames", type=positive, help="frames, chosen evenly or padded (default 4)")
    data.add_argument("--size", type=positive, help="height and width in pixels (default 64)")
    data.add_argument("--channels", type=positive, help="1, grey, or 3 (default 1)")
    data.add_argument("--folds", type=positive, help="parts of the cross-validation, by patient (default 4)")
    data.add_argument("--validation", type=float, help="share of the patients who are not in test (default 0.2)")
    data.add_argument("--seed", type=natural, help="of folds, initial weights, batches and keys (default 0)")
    data.add_argument(
        "--seeds", type=positive, help="so many, from --seed on (default 3); after the first in plaintext only"
    )
    what = parser.add_argument_group("what is trained")
    what.add_argument("--networks", type=_names, help="cnn,cnn-lstm,cnn-bi-lstm")
    what.add_argument("--sides", type=_names, help="plaintext,ciphertext")
    what.add_argument("--dtype", choices=DTYPES)
    what.add_argument("--voting", action="store_true", default=None, help="frames are scored and vote")
    what.add_argument("--filters", type=_numbers, help="of the convolutions, as 16,32,64 (default: the protocol's)")
    what.add_argument("--control-draws", type=natural, help="plaintext moved by one ulp (default 5, in float64 0)")
    what.add_argument("--no-hog", dest="hog", action="store_false", default=None, help="no HOG baseline")
    how = parser.add_argument_group("how it is trained; by default as the protocol says")
    how.add_argument("--protocol", choices=("ours", "paper"), default="ours", help="(default ours)")
    how.add_argument("--epochs", type=positive, help="a fixed number, or the largest with early stopping")
    how.add_argument("--batch-size", type=positive)
    how.add_argument("--learning-rate", type=rate)
    how.add_argument("--stopping", choices=("none", "early"))
    how.add_argument("--positive-weight", type=rate, help="of the loss of positive sequences (default 1)")
    how.add_argument("--label-smoothing", type=float)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
