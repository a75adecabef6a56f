"""A scenario is parsed once: unknown keys, values out of range and settings without effect are refused in one line."""

from pathlib import Path

import pytest

from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import ConfigError
from fedpp.imaging.readers.studies import COMPETITION
from fedpp.imaging.splits import SplitPlan
from simulations.scenario import PhantomData, Scenario, names

MIN = "description: x\nsites: 2\nrounds: 1\n"


def load(folder: Path, text: str) -> Scenario:
    (folder / "one.yaml").write_text(MIN + text)
    return Scenario.load(str(folder / "one.yaml"))


@pytest.mark.parametrize("name", names())
def test_the_project_s_scenarios_load(name: str):
    """Every scenario of the project is valid, and has its file's name."""
    assert Scenario.load(name).name == name


def test_the_first_scenarios_keep_their_splits():
    """Scenarios without splits and windows predict whole sequences, in exact shares of each label."""
    for name in ("demo", "demo-shuffled", "ultrasound"):
        scenario = Scenario.load(name)
        assert (scenario.predict, scenario.gaps, scenario.hospitals) == ("sequence", "none", None)
        assert scenario.plan() == SplitPlan("stratified", 0, scenario.validation, scenario.test)


def test_every_key_is_read(tmp_path: Path):
    """Hospitals, predictions, splits, gaps and baselines are those of the file."""
    text = (
        "hospitals: [a, b]\ntarget: Edema\nuncertain: ones\nviews: all\nseries: slide\npredict: visit\nwindow: 3\n"
        "stride: 2\nmin-length: 2\nsplit: hashed\ngaps: public\nplaintext-central: true\nlocal-baseline: true\n"
        "seed: 4\n"
    )
    scenario = load(tmp_path, text)
    assert scenario.hospitals == ("a", "b")
    assert (scenario.target, scenario.uncertain, scenario.views, scenario.series) == ("Edema", "ones", "all", "slide")
    assert (scenario.predict, scenario.window, scenario.stride, scenario.min_length) == ("visit", 3, 2, 2)
    assert (scenario.gaps, scenario.plaintext_central, scenario.run.local_baseline) == ("public", True, True)
    assert scenario.plan() == SplitPlan("hashed", 4, 0.15, 0.25)
    assert (scenario.run.server_optimizer, scenario.run.training.hyperparameters.proximal) == (
        ServerOptimizerConfig(),
        0.0,
    )
    pulled = load(tmp_path, "proximal: 0.01\nserver-optimizer: fedadam\nserver-tau: 0.1\nserver-beta-2: 0.5\n")
    assert (pulled.run.server_optimizer, pulled.run.training.hyperparameters.proximal) == (
        ServerOptimizerConfig("fedadam", beta_2=0.5, tau=0.1),
        0.01,
    )
    assert load(tmp_path, "max-length: 9\n").max_length == 9
    several = load(tmp_path, "target: [Edema, Fracture]\ncolour: true\nsensitivity: 0.95\n")
    assert (several.choices().findings, several.colour, several.sensitivity) == (("Edema", "Fracture"), True, 0.95)
    assert load(tmp_path, "target: competition\n").choices().findings == COMPETITION
    assert load(tmp_path, "phantom: {patients: 3}\n").phantom == PhantomData(3, 4, 64)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hospitals: ab", "hospitals must be a list, each a text, or nothing, got 'ab'"),
        ("filters: [4, x]", "filters: each must be a whole number of at least 1, got 'x'"),
        ("hospitals: [a]", "hospitals must be 2 different folders, one a site"),
        ("hospitals: [a, a]", "hospitals must be 2 different folders, one a site"),
        ("hospitals: [a, ../b]", "names of folders in the data, got '../b'"),
        ("hospitals: [a, ..]", "names of folders in the data, got '..'"),
        ("hospitals: [a, '']", "names of folders in the data, got ''"),
        ('hospitals: [a, "b\\n"]', r"names of folders in the data, got 'b\\n'"),
        ("hospitals: [a, b]\nphantom: {patients: 3}", "hospitals or phantom, not both"),
        ("target: [Edema, Effusions]", "target must be one of No Finding, .*, got 'Effusions'"),
        ("target: [Edema, Edema]", "target names a finding twice"),
        ("target: [Edema, Fracture]\nnegative: '0'", "several findings have their own names"),
        ("target: competition\nclasses: ['0', '1']", "several findings have their own names"),
        ("sensitivity: 0", "sensitivity must be a finite number above 0 and of at most 1, got 0"),
        ("sensitivity: 90", "sensitivity must be a finite number above 0 and of at most 1, got 90"),
        ("layout: chexpart", "layout must be one of auto, .*, got 'chexpart'"),
        ("gaps: yes", "gaps must be one of none, public, encrypted, got True"),
        ("predict: visit\nwindow: 0", "window must be a whole number of at least 1, or nothing, got 0"),
        ("predict: visit\nstride: 0", "stride must be a whole number of at least 1, got 0"),
        ("predict: visit\nwindow: 3\nmin-length: 4", "min-length must be at most the window, got 4"),
        ("predict: visit\nmax-length: 3", "max-length is for predict: sequence"),
        ("predict: visit\nshuffle-labels: true", "visits have labels of their own"),
        ("window: 3", "window and stride are for predict: visit"),
        ("stride: 3", "window and stride are for predict: visit"),
        ("min-length: 3\nmax-length: 2", "max-length must be at least min-length, got 2"),
        ("validation: 0.8", "shares must be at least 0 and below 1 together"),
        ("negative: 0", "negative must be a text, or nothing, got 0"),
        ("1: 2", "unknown 1"),
    ],
)
def test_bad_scenarios_are_refused(tmp_path: Path, text: str, reason: str):
    """Unknown choices, wrong types, values out of range, and keys that would do nothing: one line, with the file."""
    with pytest.raises(ConfigError, match=reason) as refused:
        load(tmp_path, text + "\n")
    assert str(tmp_path / "one.yaml") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_hospital_s_folder_must_be_there(tmp_path: Path):
    """A missing folder is named before anything runs."""
    scenario = load(tmp_path, "hospitals: [a, b]\n")
    (tmp_path / "data" / "a").mkdir(parents=True)
    with pytest.raises(ConfigError, match="data/b does not exist"):
        scenario.source(tmp_path / "data")
    (tmp_path / "data" / "b").mkdir()
    assert scenario.source(tmp_path / "data") == tmp_path / "data"
    with pytest.raises(ConfigError, match="one has no data of its own"):
        scenario.source(None)
