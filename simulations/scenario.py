"""Scenario: what is simulated, one YAML file, parsed once; unknown keys are refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fedpp.cipher.domain_card import Scheme
from fedpp.config.hyperparameters import Dtype
from fedpp.config.run_config import LAYOUTS, WANTED_SENSITIVITY, RunConfig, RunSettings
from fedpp.config.task import Gaps
from fedpp.errors import ConfigError
from fedpp.imaging.readers.breakhis import Series
from fedpp.imaging.readers.layout import Choices
from fedpp.imaging.readers.studies import Uncertain, Views
from fedpp.imaging.splits import Method, SplitPlan
from fedpp.keys.frame_cipher import DEFAULT_PATCH
from fedpp.settings_file import load_settings
from fedpp.values import Declared, Flat, number, one_of, whole

FOLDER = Path(__file__).parent / "scenarios"
Count = Annotated[int, whole(1)]


@dataclass(frozen=True)
class PhantomData(Declared, label="phantom"):
    """Phantom hospitals: `patients` a hospital, `visits` a patient, images of `size` x `size` pixels.

    With `hard`, the growth of both classes overlaps and hospitals differ more.
    """

    patients: Count = 40
    visits: Count = 4
    size: Count = 64
    hard: bool = False


@dataclass(frozen=True)
class Scenario(Declared, label="scenario", hyphens=True):
    """A federation's data, settings and comparisons; `phantom` is None where the command line names the data.

    `hospitals` names folders of the data, one a site; without it the data are divided among the sites by patient.
    The settings of the run stand beside the others in the file. `local-baseline` is trained in plaintext here.
    """

    name: str
    description: str
    run: Annotated[RunSettings, Flat()]
    phantom: PhantomData | None = None
    hospitals: tuple[str, ...] | None = None
    layout: Annotated[str, one_of(*LAYOUTS)] = "auto"
    target: str = "Pleural Effusion"  # CheXpert: the finding or findings, what uncertain ones become, which views count
    uncertain: Uncertain = "ignore"
    views: Views = "frontal"
    series: Series = "magnification"  # BreakHis: what a sequence is
    classes: tuple[str, ...] | None = None
    negative: str | None = None
    shuffle_labels: bool = False  # a control: nothing can be learned, so the AUC must be about 0.5
    predict: Literal["sequence", "visit"] = "sequence"
    window: Count | None = None  # visits up to the predicted one; by default as many as frames
    stride: Count = 1  # every so many labelled visits
    min_length: Count = 1
    max_length: Count | None = None  # of a sequence: its last frames
    frames: Count = 4
    size: Count = 64
    colour: bool = False  # keep red, green and blue
    gaps: Gaps = "none"  # the time between frames, as a feature
    split: Method = "stratified"
    validation: float = 0.15
    test: float = 0.25
    scheme: Scheme = "more"
    two_sites: Literal["refused", "accepted"] = "refused"  # masked runs of two sites, which hide nothing there
    n: Annotated[int, whole(2)] = 2  # slots of `more`
    patch: Annotated[int, whole(0)] = DEFAULT_PATCH  # of frame mixing: side of the mixed patches, or 0 for rows
    plaintext_federated: bool = True  # train the plaintext reference too, for comparison and parity
    plaintext_central: bool = False  # and one on all sites' data in one place
    engine: Literal["ray", "in-process"] = "ray"  # in-process: one site after the other, without Ray; for small runs
    sensitivity: Annotated[float, number(above=0, most=1)] = WANTED_SENSITIVITY  # of the report's operating point
    control_draws: Annotated[int, whole(0)] = 0  # plaintext references with initial weights moved by one ulp

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a scenario by its name or its file; raise `ConfigError` for unknown names and keys."""
        path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
        if not path.exists():
            raise ConfigError(f"no scenario {name!r}: known are {', '.join(names())}, or name a .yaml file")
        values = load_settings(path, "scenario")
        if isinstance(values.get("target"), list):
            values["target"] = ",".join(map(str, values["target"]))
        try:
            return cls.from_mapping({"name": path.stem, **values})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def __post_init__(self) -> None:
        """Refuse values of another type or out of range, and those that would do nothing."""
        super().__post_init__()
        self._check_findings()
        self.plan()
        if self.run.strategy and self.plaintext_federated:
            raise ConfigError(
                f"the plaintext reference has no Flower strategies, got {self.run.strategy!r:.80}: set "
                "plaintext-federated: false"
            )
        self._check_hospitals()
        self._check_lengths()

    def _check_findings(self) -> None:
        several = len(self.choices().findings) > 1
        if several and (self.classes is not None or self.negative is not None):
            raise ConfigError("classes and negative are for one label: several findings have their own names")

    def _check_hospitals(self) -> None:
        if self.hospitals is None:
            return
        if self.phantom is not None:
            raise ConfigError("phantom hospitals have no folders of their own: give hospitals or phantom, not both")
        if len(self.hospitals) != self.run.sites or len(set(self.hospitals)) != self.run.sites:
            raise ConfigError(f"hospitals must be {self.run.sites} different folders, one a site, got {self.hospitals}")
        for name in self.hospitals:
            if name in {"", ".", ".."} or Path(name).name != name or not name.isprintable():
                raise ConfigError(f"hospitals must be names of folders in the data, got {name!r}")

    def _check_lengths(self) -> None:
        if self.predict == "visit":
            if self.max_length is not None:
                raise ConfigError("max-length is for predict: sequence; predict: visit has window")
            if self.shuffle_labels:
                raise ConfigError(
                    "shuffle-labels deals one label a patient, and visits have labels of their own: leave one of "
                    "shuffle-labels and predict: visit out"
                )
            if self.min_length > (self.window or self.frames):
                raise ConfigError(f"min-length must be at most the window, got {self.min_length}")
            return
        if self.window is not None or self.stride != 1:
            raise ConfigError("window and stride are for predict: visit; predict: sequence has max-length")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(f"max-length must be at least min-length, got {self.max_length}")

    def choices(self) -> Choices:
        """Return what the layout of the data leaves open."""
        return Choices(self.target, self.uncertain, self.views, self.series)

    def plan(self) -> SplitPlan:
        """Return how each site's patients are split."""
        return SplitPlan(self.split, self.run.training.seed, self.validation, self.test)

    def source(self, data: Path | None) -> Path | PhantomData:
        """Return what the hospitals' data come from; raise `ConfigError` if there is nothing."""
        if data is None:
            if self.phantom is None:
                raise ConfigError(f"scenario {self.name} has no data of its own: name a folder with --data")
            return self.phantom
        for path in (data, *(data / name for name in self.hospitals or ())):
            if not path.exists():
                raise ConfigError(f"{path} does not exist: name the folder of raw data")
        return data

    def with_options(self, *, seed: int | None, dtype: Dtype | None, layout: str | None) -> Self:
        """Return this scenario with the options of the command line in place of its own settings."""
        given: dict[str, Any] = {"seed": seed, "dtype": dtype, "layout": layout}
        return self.changed(**{name: value for name, value in given.items() if value is not None})

    def run_config(self, card: str, out: Path) -> RunConfig:
        """Return the coordinator's run configuration: all sites in each round, local baselines in plaintext instead."""
        run = self.run.values() | {"quorum": self.run.quorum or self.run.sites, "local_baseline": False}
        return RunConfig.of(**run, card=card, out=str(out.resolve()))


def names() -> list[str]:
    """Return the scenarios that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
