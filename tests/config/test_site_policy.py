"""What a site allows: what `site.yaml` may say, and what each requirement refuses."""

import string
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedpp.config.contract_limits import RunLimits
from fedpp.config.model_spec import ARCHITECTURES
from fedpp.config.site_policy import REQUESTS, EvaluationLimits, SitePolicy, starting_text
from fedpp.errors import ConfigError, PolicyError
from simulations.scenario import Scenario, names

A, B = "a" * 64, "0b" * 32
HASH = st.text("0123456789abcdef", min_size=64, max_size=64)
COUNT = st.integers(1, 2**31 - 1)
POLICIES = st.builds(
    SitePolicy,
    bundles=st.lists(HASH, unique=True).map(tuple),
    datasets=st.lists(HASH, unique=True, min_size=1).map(tuple),
    requests=st.lists(st.sampled_from(REQUESTS), unique=True).map(tuple),
    evaluation=st.builds(EvaluationLimits, COUNT, COUNT, COUNT, COUNT),
    limits=st.builds(
        RunLimits,
        members=st.none() | st.just(("East", "West")),
        max_rounds=COUNT,
        max_learning_rate=st.floats(1e-6, 10),
        max_step=st.floats(0.001, 4),
        architectures=st.lists(st.sampled_from(ARCHITECTURES), unique=True, min_size=1).map(tuple),
        max_changes=st.none() | st.integers(0, 9),
        reporting=st.sampled_from(("aggregate", "per-site")),
        max_epsilon=st.none() | st.floats(0.1, 10),
        two_sites=st.sampled_from(("refused", "accepted")),
    ),
    until=st.none() | st.dates(),
    min_other_sites=st.integers(0, 2**31 - 1),
    secure_aggregation=st.sampled_from(("required", "optional")),
)
MIN = f"bundles: []\ndatasets: ['{A}']\n"
# What YAML can say and a policy has no use for; on most of these PyYAML itself fails in one way or another.
MARKED = (
    *("until: !!timestamp soon", "until: !!binary x", "min-other-sites: !!int ''", "min-other-sites: !!float ''"),
    *("min-other-sites: !!bool maybe", "min-other-sites: !!null x", "evaluation: !!set x", "evaluation: !!omap x"),
    *("evaluation: !!pairs [x]", "evaluation: !!map x", "evaluation: !!python/object/apply:os.system ['true']"),
    *("evaluation: !mine x", "evaluation: ! x", "requests: &a [*a]", "requests: *b", "evaluation: &a {rounds: 2}"),
)
EXPANDING = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)
# Parts of YAML, which come together to what is nearly a policy.
WORDS = """bundles datasets requests evaluation until min-other-sites secure-aggregation optional train [ ] { } ' "
# --- ... !!map !!seq !!set !!int !!float !!bool !!null !!timestamp !!binary !x ! &a *a << = ~ 0x 0b_ ._ 1:59 .nan 1e999
- _ \\ 2030-12-31 9999-12-31t23:59:59-23:59"""
SPACES = ("\n", "\n  ", "\n- ", ": ", ", ", "? ", "| ", "> ", " ", "\0", "\u202e", "\x85", "\ufeff", "%TAG ! x:\n")
SETTINGS = st.builds(
    "{}{}: {}{}{}".format,
    st.just(MIN),
    st.sampled_from(("requests", "evaluation", "until", "min-other-sites", "secure-aggregation", "? ")),
    st.sampled_from(("", "&a ", "! ", *(f"{word} " for word in WORDS.split() if word.startswith("!!")))),
    st.sampled_from(("", "''", "x", "[x]", "[*a]", "{x: 1}", "{<<: x}", "0x", "1:59", "2030-12-31", "9" * 5000)),
    st.sampled_from(("", "\n", "\nx: *a")),
)
PARTS = st.sampled_from([*WORDS.split(), *SPACES, *MIN.splitlines(), A, "9" * 5000])


@given(POLICIES)
def test_parse_reads_what_to_yaml_wrote(policy: SitePolicy) -> None:
    """parse(policy.to_yaml()) == policy."""
    assert SitePolicy.parse(policy.to_yaml()) == policy


def test_the_starting_text_is_the_defaults(tmp_path: Path) -> None:
    """The commented text says what the code's defaults are: one dataset, no bundle, no end."""
    (tmp_path / "site.yaml").write_text(starting_text(A))
    assert SitePolicy.load(tmp_path / "site.yaml") == SitePolicy((), (A,)) == SitePolicy.parse(MIN)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *(
            (text, "the policy is empty: nothing is allowed; `fedpp-site policy` writes one")
            for text in ("", "# x\n", "~", "---")
        ),
        ("{}", "missing bundles, missing datasets"),
        ("- a", "the policy must be settings like 'name: value', got ['a']"),
        (f"datasets: ['{A}']", "missing bundles"),
        (MIN + "bundle: []", "unknown 'bundle'"),
        (MIN + "bundles: []", "'bundles' stands twice"),
        (MIN + "evaluation: {rounds: 1, rounds: 2}", "'rounds' stands twice"),
        ("bundles: []\ndatasets: []", "datasets must be a list of at least one, got []"),
        (f"bundles: [{A.upper()}]\ndatasets: ['{A}']", "bundles: each must be 64 hexadecimal digits in lower case"),
        (f"bundles: ['{A}\\n']\ndatasets: ['{A}']", "bundles: each must be 64 hexadecimal digits"),
        (f"bundles: ['{A}', '{A}']\ndatasets: ['{A}']", f"bundles: '{A}' stands twice"),
        (f"bundles: {A}\ndatasets: ['{A}']", "bundles must be a list, each 64 hexadecimal digits in lower case, got"),
        (MIN + "requests: [predict]", "requests: each must be one of describe, initial-weights, train, accept"),
        (MIN + "requests: [train, train]", "'train' stands twice"),
        (MIN + "requests: train", "requests must be a list"),
        (MIN + "evaluation: {per-round: 0}", "evaluation: per-round must be a whole number from 1 to 2"),
        (MIN + "evaluation: {per-day: true}", "per-day must be a whole number from 1 to 2147483647, got True"),
        (MIN + "evaluation: {minimum: 3}", "evaluation: unknown 'minimum'"),
        (MIN + "evaluation: 3", "evaluation: settings like 'name: value' are needed, got 3"),
        *(
            (MIN + f"limits: {{{name}: {value}}}", f"limits: {name}{reason}")
            for name, value, reason in (
                ("min-honest", 1, " must be a whole number from 2 to 1000, got 1"),
                ("colluders", 0, " must be a whole number from 1 to 1000, got 0"),
                ("max-step", 4.1, " must be a finite number above 0 and of at most 4, got 4.1"),
                ("max-batch-share", 2, " must be a finite number above 0 and of at most 1, got 2"),
                ("max-epsilon", 0, " must be a finite number above 0, or nothing, got 0"),
                ("min-learning-rate", 1, " must be at most max-learning-rate, 0.1, got 1"),
                ("min-server-learning-rate", 2, " must be at most max-server-learning-rate, 1, got 2"),
                (
                    "max-update-value",
                    0,
                    " must be a finite number of at least 9.53674e-07 and of at most 1.04858e+06, got 0",
                ),
                ("members", [], " must be a list of at least 1"),
                ("members", "[East, East]", ": 'East' stands twice"),
                ("architectures", "[rnn]", ": each must be one of cnn, cnn-lstm, cnn-bi-lstm, got 'rnn'"),
                ("initial-models", "[model.npz]", ": each must be one of fresh, endorsed, got"),
                ("reporting", "none", " must be one of aggregate, per-site, got 'none'"),
                ("two-sites", "true", " must be one of refused, accepted, got True"),
            )
        ),
        (MIN + "limits: {colluder: 1}", "limits: unknown 'colluder', did you mean colluders?"),
        (MIN + "min-other-sites: -1", "min-other-sites must be a whole number from 0 to 2147483647, got -1"),
        *(
            (MIN + f"secure-aggregation: {value}", "secure-aggregation must be one of required, optional, got")
            for value in ("none", "Required", "false", "true", "", "[required]", "{required: 1}", "1", "'optional '")
        ),
        (MIN + "secure-aggregation: optional\nsecure-aggregation: required", "'secure-aggregation' stands twice"),
        (MIN + "until: soon", "until must be a date like 2030-12-31, got 'soon'"),
        (MIN + "until: 2030-12-31 10:00:00", "until must be a date"),
        (MIN + "until: 2030-13-31", "the policy is not YAML: month must be in 1..12"),
        (MIN + 'until: "\\e[2J\\u202e\\n"', r"until must be a date like 2030-12-31, got '\x1b[2J\u202e\n'"),
        (MIN + "until: [", "the policy is not YAML"),
        (MIN + "<<: {rounds: 2}", "'<<' merges settings"),
        *((text, "the policy's line 3 holds a tag, an anchor or an alias") for text in (MIN + line for line in MARKED)),
        ("!!map x", "the policy's line 1 holds a tag"),
        ("!!set x", "the policy's line 1 holds a tag"),
        (EXPANDING, "the policy's line 1 holds a tag, an anchor or an alias"),
        (MIN + f"min-other-sites: 0x{'f' * 4000}", "the policy's line 3 holds a value of over 2000 characters"),
        (MIN + f"min-other-sites: {':'.join(['1'] * 3000)}", "the policy's line 3 holds a value of over 2000"),
        ("[" * 5000, "the policy is nested too deep"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    """Every setting is checked, and the refusal names the file, the setting and the value."""
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        SitePolicy.load(path)
    assert reason in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@example(MIN + "until: 9999-12-31t23:59:59-23:59")
@given(st.text(string.printable) | SETTINGS | st.lists(PARTS).map("".join))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    """No text ends in another error than `ConfigError`."""
    try:
        SitePolicy.parse(text)
    except ConfigError as error:
        assert str(error).isprintable()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What is missing, no text or much too long is refused in one line."""
    path = tmp_path / "site.yaml"
    with pytest.raises(ConfigError, match=f"cannot read the policy {tmp_path}: Is a directory; it must be a file"):
        SitePolicy.load(tmp_path)
    for content, reason in (
        (None, "there is no policy"),
        (b"\xff", "is not UTF-8 at byte 0"),
        (b"#" * 2**21, "is larger"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as raised:
            SitePolicy.load(path)
        assert reason in str(raised.value)
        assert str(path) in str(raised.value)


@given(POLICIES, HASH)
def test_only_what_is_listed_may_run(policy: SitePolicy, other: str) -> None:
    """A bundle, a dataset and a request pass exactly if the policy lists them."""
    for listed in policy.bundles:
        policy.require_bundle(listed)
    for listed in policy.datasets:
        policy.require_dataset(listed)
    for name in REQUESTS:
        if name in policy.requests:
            policy.require_request(name)
        else:
            with pytest.raises(PolicyError, match=f"does not allow to answer '{name}'"):
                policy.require_request(name)
    if other not in policy.bundles:
        with pytest.raises(PolicyError, match=other):
            policy.require_bundle(other)
    if other not in policy.datasets:
        with pytest.raises(PolicyError, match=other[:16]):
            policy.require_dataset(other)


@given(st.dates(max_value=date.max - timedelta(days=1)))
def test_the_last_day_counts(until: date) -> None:
    """On the day of `until` the site replies, on the next it does not; without one there is no end."""
    policy = SitePolicy((), (A,), until=until)
    policy.require_current(until)
    with pytest.raises(PolicyError, match=f"ended with {until}"):
        policy.require_current(until + timedelta(days=1))
    SitePolicy((), (A,)).require_current(date.max)


def test_other_sites_are_counted() -> None:
    """As many other sites as the policy says are enough, one fewer is not."""
    policy = SitePolicy((), (A,), min_other_sites=2)
    policy.require_participants(2)
    with pytest.raises(PolicyError, match="wants 2 other sites in a run, got 1"):
        policy.require_participants(1)


def test_the_mask_is_required_unless_the_policy_says_otherwise() -> None:
    """A run with masking is always allowed; one without only where the policy calls it optional."""
    strict, lax = SitePolicy.parse(MIN), SitePolicy.parse(MIN + "secure-aggregation: optional")
    assert strict == SitePolicy.parse(MIN + "secure-aggregation: required")
    for policy in (strict, lax):
        policy.require_secure_aggregation(masked=True)
    lax.require_secure_aggregation(masked=False)
    with pytest.raises(PolicyError, match="requires secure aggregation, and the run has it off"):
        strict.require_secure_aggregation(masked=False)


@pytest.mark.parametrize(("given", "members", "changes"), [(None, 5, 0), (None, 6, 1), (0, 6, 0), (3, 3, 3)])
def test_small_cohorts_do_not_change_by_default(given: int | None, members: int, changes: int) -> None:
    """A run of five sites pauses without one of them, unless its policy says otherwise."""
    assert RunLimits(max_changes=given).changes(members) == changes


@pytest.mark.parametrize("name", [name for name in names() if Scenario.load(name).run.sites > 2])
def test_the_default_limits_admit_every_scenario(name: str) -> None:
    """Each of the project's scenarios of three sites and more stays within the limits of a new site.yaml."""
    run, limits = Scenario.load(name).run, RunLimits()
    rate = run.training.hyperparameters.learning_rate
    assert run.rounds <= limits.max_rounds
    assert limits.min_learning_rate <= rate <= limits.max_learning_rate
    server = run.server_optimizer.learning_rate
    assert limits.min_server_learning_rate <= server <= limits.max_server_learning_rate
    assert run.bounds.max_update_value <= limits.max_update_value
    assert run.training.model.architecture in limits.architectures
    assert (run.min_honest, run.colluders, run.reporting) == (limits.min_honest, limits.colluders, limits.reporting)
