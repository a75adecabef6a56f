"""The settings of a run."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES, RunConfig, SiteConfig
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.site_policy import EvaluationLimits
from fedpp.errors import ConfigError

DEFAULTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
POSITIVE = (
    "learning-rate",
    "wait-seconds",
    "round-seconds",
    "max-update-value",
    "max-update-norm",
    "max-loss-increase",
)
GIVEN_BY_RUN = ("card", "coordinator", "out", "initial-model", "sites")  # options of `run` of their own


def test_the_defaults_are_the_declared_ones():
    """What pyproject.toml repeats for Flower is what the declarations say, name by name."""
    assert RunConfig.of(card="", out="runs/federation", sites=2).to_flower() == DEFAULTS


def test_the_guide_names_every_setting():
    """The table of the run settings has each name that `--set` takes, in order, with its default."""
    guide = (ROOT / "docs" / "reference" / "run_settings.md").read_text()
    table = guide.partition("| setting | default | meaning |")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[:2] for line in table.splitlines() if line.startswith("| `")]
    expected = {name: value for name, value in DEFAULTS.items() if name not in GIVEN_BY_RUN}
    assert [(name.strip("| `"), default) for name, default in rows] == [
        (name, str(value).lower()) for name, value in expected.items()
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("sites", "rounds", "epochs", "batch-size", "kernel", "dense", "lstm")),
        *((name, value) for name in POSITIVE for value in (0.0, -1.0, float("nan"), float("inf"))),
        *(("max-update-value", value) for value in (2.0**-21, 2.0**20 + 1)),  # which no ring has
        ("sites", MAX_SITES + 1),
        ("quorum", -1),
        ("quorum", 3),  # of 2 sites
        ("max-examples", -1),
        ("max-examples", MAX_EXAMPLES + 1),
        ("seed", -1),
        ("retries", -1),
        ("retries", 100),
        *((name, value) for name in ("retries", *POSITIVE[3:]) for value in (True, "1")),
        ("retries", 1.0),
        *(("secure-aggregation", value) for value in (1, 0, "true", "off")),
        *((name, value) for name in ("colluders", "min-honest") for value in (0, MAX_SITES + 1, 1.0, True)),
        ("min-honest", 1),
        ("monitor", "accuracy"),
        *(("patience", value) for value in (-1, 2.5, True)),
        ("reporting", "all"),
        ("dtype", "float16"),
        ("architecture", "transformer"),
        ("voting", "yes"),
        ("positive-weight", -1.0),
        ("label-smoothing", 1.0),
        ("proximal", -1.0),
        ("server-optimizer", "adam"),
        ("server-learning-rate", 0.0),
        ("server-momentum", 1.0),
        ("server-beta-2", -0.5),
        ("server-tau", 0.0),
        ("micro-batch", 0),
        ("filters", "16,x"),
        ("filters", "16,x,"),
        ("rounds", True),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object):
    """What cannot be run is refused, with its name and the value."""
    with pytest.raises(ConfigError, match=f"run configuration: {name}.* got {value!r}"):
        RunConfig.from_mapping({**DEFAULTS, name: value})


def test_bounds_are_accepted():
    """No retry is one try of a round, 99 are as many as a request can number; a whole number is a number."""
    bounds = ({"max-update-value": 8, "max-loss-increase": 1}, *({"max-update-value": 2.0**x} for x in (-20, 20)))
    for values in ({"retries": 0}, {"retries": 99}, {"secure-aggregation": False}, {"sites": MAX_SITES}, *bounds):
        run = RunConfig.from_mapping({**DEFAULTS, **values}).to_flower()
        assert {name: run[name] for name in values} == values


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patience": 3}, "patience needs monitor loss or auc, got 3 with monitor last"),
        ({"sites": 3, "colluders": 2}, r"sites must be at least min-honest and colluders together, 2 \+ 2, got 3"),
        *(
            ({"secure-aggregation": False, **change}, f"{name} is of masked runs, got .* secure-aggregation=false")
            for name, change in (
                ("colluders", {"colluders": 2}),
                ("min-honest", {"min-honest": 3}),
                ("monitor", {"monitor": "auc", "patience": 1}),
                ("reporting", {"reporting": "per-site"}),
            )
        ),
    ],
)
def test_settings_of_masked_runs_do_something(change: dict[str, object], reason: str):
    """A run in clear has no contract, and a patience needs a figure that can get better."""
    with pytest.raises(ConfigError, match=reason):
        RunConfig.from_mapping({**DEFAULTS, **change})
    RunConfig.from_mapping({**DEFAULTS, "monitor": "auc", "patience": 3, "reporting": "per-site"})
    RunConfig.from_mapping({**DEFAULTS, "sites": 4, "colluders": 2})


def test_a_local_baseline_is_of_runs_in_clear():
    """A masked run opens no figure of one site's own model: it is refused in one line, before any site is asked."""
    with pytest.raises(ConfigError, match=r"^run configuration: local-baseline is of runs in clear, got true .* leave"):
        RunConfig.from_mapping({**DEFAULTS, "local-baseline": True})
    RunConfig.from_mapping({**DEFAULTS, "local-baseline": True, "secure-aggregation": False})


def test_a_quorum_is_more_than_half_of_the_sites_by_default():
    """Or the number that the setting gives."""
    for sites, quorum, minimum in (*((n, 0, n // 2 + 1) for n in (1, 2, 3, 4, MAX_SITES)), (4, 1, 1), (4, 4, 4)):
        assert RunConfig.from_mapping({**DEFAULTS, "sites": sites, "quorum": quorum}).min_sites() == minimum


@pytest.mark.parametrize(("initial", "reported"), [("", False), ("ab" * 32, True)])
def test_a_record_has_all_settings_but_the_card_and_paths(initial: str, reported: bool):
    """Each setting has its name and value; of the initial model only its existence is recorded."""
    run = RunConfig.from_mapping({**DEFAULTS, "card": "{}", "out": "/secret/out", "initial-model": initial})
    settings = {name: value for name, value in DEFAULTS.items() if name not in {"card", "out", "coordinator"}}
    assert run.reported() == {**settings, "initial-model": reported}
    assert type(run.reported()["initial-model"]) is bool


def test_a_vault_by_default_evaluates_every_try_of_a_run_by_default():
    """Each takes two evaluations of split validation, of the trained and the new model, and may repeat a training."""
    assert EvaluationLimits().per_round == 3 * (DEFAULTS["retries"] + 1)


def test_a_masked_run_starts_from_an_endorsed_model_and_another_from_a_file():
    """Without masking the coordinator sends the model; with it each vault has the one that its site endorsed."""
    for masking, initial in ((True, "ab" * 32), (True, ""), (False, "/m.npz"), (False, "")):
        RunConfig.from_mapping({**DEFAULTS, "secure-aggregation": masking, "initial-model": initial})
    for masking, initial, wanted in (
        (True, "/m.npz", "endorsed, as `fedpp-site"),
        (False, "ab" * 32, "is a model.npz"),
    ):
        with pytest.raises(ConfigError, match=f"{wanted}.*, got '{initial}"):
            RunConfig.from_mapping({**DEFAULTS, "secure-aggregation": masking, "initial-model": initial})


KEY = "/keys/domain.eval"
SITE = {"dataset": "/data", "evaluation-key": KEY, "vault": "unix:/v.sock", "policy": "/site.yaml", "work": "/work"}
TOLD = {**SITE, "coordinator": "{}"}


def test_a_site_configuration_has_all_of_its_addresses():
    """Settings come back as they were; one that is missing, of another type or of no known name is refused."""
    assert SiteConfig.from_mapping(SITE).work == Path("/work")
    assert SiteConfig.from_mapping(TOLD).to_mapping() == TOLD
    for name in SITE:
        with pytest.raises(ConfigError, match=f"site configuration: missing {name}"):
            SiteConfig.from_mapping({known: value for known, value in SITE.items() if known != name})
        for value in (7, True, None, ["/data"]):
            with pytest.raises(ConfigError, match=f"site configuration: {name} must be "):
                SiteConfig.from_mapping({**SITE, name: value})
    with pytest.raises(ConfigError, match="site configuration: unknown 'models'; known are coordinator, dataset"):
        SiteConfig.from_mapping({**SITE, "models": "/models"})
    with pytest.raises(ConfigError, match="unknown 'evaluation-kye', did you mean evaluation-key.; known"):
        SiteConfig.from_mapping({**SITE, "evaluation-kye": "/key"})
    with pytest.raises(
        ConfigError, match="unknown 'x-0', .*, 992 more unknown names; known are coordinator, dataset"
    ) as refused:
        SiteConfig.from_mapping({**SITE, **{f"x-{number}": "" for number in range(1000)}})
    assert len(str(refused.value)) < 500


def test_the_server_optimizer_is_that_of_the_settings():
    """By default it is the optimizer's own default; each setting is the field of its name."""
    assert RunConfig.from_mapping(DEFAULTS).server_optimizer == ServerOptimizerConfig()
    numbers = {"server-learning-rate": 0.1, "server-momentum": 0.2, "server-beta-2": 0.3, "server-tau": 0.4}
    run = RunConfig.from_mapping({**DEFAULTS, "server-optimizer": "fedyogi", **numbers})
    assert run.server_optimizer == ServerOptimizerConfig("fedyogi", 0.1, 0.2, 0.3, 0.4)


TASK = TINY.task


@pytest.mark.parametrize("name", ["frames", "height", "width", "channels", "kernel", "dense", "lstm"])
@pytest.mark.parametrize("value", [0, -1, "8", 2.0, True])
def test_a_network_without_a_size_is_refused(name: str, value: object):
    """Each of its sizes is a whole number of at least 1; a network comes as JSON from another machine."""
    with pytest.raises(ConfigError, match=f"network: {name} must be a whole number .*, got {value!r}"):
        TINY.changed(**{name: value})


@pytest.mark.parametrize("network", [TINY, TINY.changed(gaps=True)])
def test_a_network_survives_its_json(network: ModelSpec):
    """Law: `from_json(spec.to_json()) == spec`."""
    assert ModelSpec.from_json(network.to_json()) == network


@pytest.mark.parametrize("name", ["gaps", "voting", "multi_label"])
@pytest.mark.parametrize("value", [1, "true", None, []])
def test_what_is_true_or_false_is_nothing_else(name: str, value: object):
    """A network's JSON comes from another machine: what only passes for true is refused."""
    with pytest.raises(ConfigError, match=f"network: {name.replace('_', '-')} must be true or false"):
        ModelSpec.from_json(json.dumps({**json.loads(TINY.to_json()), name: value}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "rnn"}, "architecture must be one of cnn, cnn-lstm, cnn-bi-lstm, got 'rnn'"),
        ({"patch": 3}, "images of 8 x 8 are not made of patches of 3"),
        ({"patch": -1}, "patch must be a whole number from 0 to 2147483648, got -1"),
        ({"patch": True}, "patch must be a whole number"),
        ({"classes": ["no"]}, "two classes, or one finding"),
        ({"classes": [], "multi_label": True}, "two classes, or one finding"),
        ({"classes": ["no", "no"]}, "'no' stands twice"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(change: dict[str, object], reason: str):
    """An unknown architecture, patches that do not divide the image, and too few outputs are named."""
    with pytest.raises(ConfigError, match=reason):
        ModelSpec.from_json(json.dumps({**json.loads(TINY.to_json()), **change}))


def test_a_multi_label_network_may_have_one_finding():
    """A single finding has a logit of its own, where a single class would have no alternative."""
    assert TINY.changed(classes=("Edema",), multi_label=True).weights()[-1].shape == (1,)


def test_gaps_are_one_more_input_of_the_lstm():
    """Both directions' kernels have one more row, and all else is the same."""
    without, with_ = ({w.name: w.shape for w in n.weights()} for n in (TINY, TINY.changed(gaps=True)))
    assert with_ == {**without, "forward/kernel": (6, 16), "backward/kernel": (6, 16)}


def test_a_network_for_a_task_fits_it():
    """Whatever the task has: time gaps, findings, patches."""
    for task in (TASK, replace(TASK, gaps=True), replace(TASK, multi_label=True, patch=4)):
        assert ModelSpec(task, TINY.choices).misfit(task) is None


def test_unlabelled_data_fit_a_network_of_any_classes():
    """They can be predicted; their shape must fit all the same."""
    unlabelled = replace(TASK, classes=())
    assert TINY.changed(classes=tuple("abcde")).misfit(unlabelled) is None
    assert "0 classes" in str(TINY.changed(frames=3).misfit(unlabelled))
    assert TINY.changed(multi_label=True).misfit(unlabelled) is None


def test_findings_are_no_classes():
    """As many findings as classes are another task, and the line calls them so."""
    assert str(TINY.changed(multi_label=True).misfit(TASK)) == (
        "the network is for 2 frames of 8 x 8 x 1, without time gaps, 2 findings (no, yes); "
        "the data are 2 frames of 8 x 8 x 1, without time gaps, 2 classes (no, yes)"
    )


@pytest.mark.parametrize(
    "change",
    [*({name: 16} for name in ("frames", "height", "width", "channels")), {"gaps": True}, {"classes": ("a", "b", "c")}],
)
def test_a_misfit_names_both_sides(change: dict[str, object]):
    """The line says what the network is for, and what the data are."""
    task = TASK.changed(**change)
    shape = f"{task.frames} frames of {task.height} x {task.width} x {task.channels}"
    classes = f"{len(task.classes)} classes ({', '.join(task.classes)})"
    assert TINY.changed(**change).misfit(TASK) == (
        f"the network is for {shape}, {'with' if task.gaps else 'without'} time gaps, {classes}; "
        "the data are 2 frames of 8 x 8 x 1, without time gaps, 2 classes (no, yes)"
    )
