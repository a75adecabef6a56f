"""Strategies of Flower on real records: each equals a NumPy oracle, and is resumed after a crash."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from coordinator_runs import Crashed, CrashingGrid, LocalGrid, Site, answered, config, describe, identity_of
from flwr.app import ArrayRecord, Message, RecordDict
from global_states import flat
from masked_sites import DOMAIN
from members import founded, proof

from coordinator.__main__ import main
from coordinator.server.app import federate
from coordinator.server.chosen_strategy import REFUSED, ChosenStrategy, names
from coordinator.server.run_state import RunState
from fedpp.aggregation.global_state import GlobalState
from fedpp.cipher.domain_card import Scheme
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import RunConfig
from fedpp.errors import ConfigError, FederationError
from fedpp.learning.metrics import count, metrics
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol import messages
from fedpp.protocol.run_record import FederationRecord
from simulations.benchmarks.simulated_client import SimulatedClient
from sites.client import local_round

KEYS = founded(scheme="more-frame")
FRAMES = KEYS.card()
MANY = "abcdefg"
State = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """Keep earlier tests' objects from the garbage collector, which some strategies of Flower call for each update."""
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass(frozen=True)
class FramePlayer(SimulatedClient):
    """A site of `FRAMES`, whose training adds a draw for the site and the round, and a `shift`."""

    shift: float = 0.0

    @property
    def number(self) -> int:
        """Return its place in the alphabet, from 1."""
        return ord(self.description.name) - 96

    @property
    def loss(self) -> float:
        """Return its validation loss, for any model."""
        return 0.2 * self.number

    def rows_of_round_0(self, network: ModelSpec) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)
        return {spec.name: generator.normal(size=(*spec.shape, 1)) for spec in network.weights()}

    def update(self, before: GlobalState) -> dict[str, np.ndarray]:
        generator = np.random.default_rng([self.number, before.round])
        return {name: generator.normal(size=rows.shape) / 8 + self.shift for name, rows in before.rows.items()}

    def accept(self, content: RecordDict, reason: str = "") -> RecordDict:
        reply = super().accept(content, reason)
        right = exp(-self.loss)
        counts = count(np.zeros(2, int), np.array([[right, 1 - right]] * 2))
        reply[messages.METRICS].update(counts.to_mapping())
        return reply

    def advanced(self, content: RecordDict, request: messages.AcceptRequest, before: GlobalState) -> GlobalState:
        made = messages.state_of(content, messages.AFTER)
        return local_round.given(request.run_spec, before, made, attempt=request.attempt)


@dataclass
class FrameSite(Site):
    """A site of `FRAMES`, which accepts every model but those of the attempts `rejected`, by round and number."""

    shift: float = 0.0
    rejected: tuple[tuple[int, int], ...] = ()

    def answer(self, message: Message) -> RecordDict | None:
        if message.metadata.message_type == "query.describe":
            nonce = messages.DescribeRequest.read(message.content).nonce
            proved = proof(identity_of(self.description.name), FRAMES, nonce).to_json()
            return answered(self.description, proved)
        return super().answer(message)

    def player(self) -> FramePlayer:
        return FramePlayer(self.description, KEYS, held=self.held, shift=self.shift)

    def reason_of(self, request: messages.AcceptRequest) -> str:
        return "no" if (request.round, request.attempt) in self.rejected else ""


def site(name: str, **more: object) -> FrameSite:
    """Return a site, with more sequences the later its name."""
    sizes = (ord(name) - 95, 2, 1)
    form = {"domain": FRAMES.fingerprint, "n": 1, "patch": 2, "sequences": sizes, "patients": sizes}
    return FrameSite(describe(name, **form), **more)


def run_of(out: Path, strategy: str, settings: str = "", **changes: object) -> RunConfig:
    values = {
        "card": FRAMES.to_json(),
        "secure-aggregation": False,
        "sites": len(MANY),
        "quorum": 3,
        "round-seconds": 2.0,
    }
    return config(out, **{**values, "strategy": strategy, "strategy-settings": settings, **changes})


def ended(grid: LocalGrid, run: RunConfig) -> tuple[FederationRecord, np.ndarray]:
    """Return the record of a run, and its model as a vector."""
    record = federate(grid, run)
    model = EncryptedModel.load(Path(run.out) / "model.npz")
    return record, flat(model.rows, model.network)


@dataclass(frozen=True)
class Round:
    """Inputs of a strategy in one round: of k sites, in the order of their names."""

    number: int
    before: np.ndarray  # [d]
    weights: np.ndarray  # [k, d]
    examples: np.ndarray  # [k]
    losses: np.ndarray  # [k]

    @property
    def mean(self) -> np.ndarray:
        return self.examples @ self.weights / self.examples.sum()


def krum(r: Round, bad: int, chosen: int) -> np.ndarray:
    """Return the sites with the smallest sum of squared distances to their k - bad - 2 nearest (arXiv:1703.02757)."""
    distances = ((r.weights[:, None] - r.weights[None]) ** 2).sum(-1)
    nearest = np.sort(distances, axis=1)[:, 1 : len(distances) - bad - 1]
    return np.argsort(nearest.sum(1))[:chosen]


def mean_of(r: Round, chosen: np.ndarray) -> np.ndarray:
    return r.examples[chosen] @ r.weights[chosen] / r.examples[chosen].sum()


def momentum(r: Round, state: State) -> np.ndarray:
    state["m"] = 0.9 * state.get("m", 0.0) + r.mean - r.before
    return r.before + 0.5 * state["m"]


def adaptive(
    r: Round, state: State, grow: Callable[[np.ndarray, np.ndarray], np.ndarray], beta: float, rate: float
) -> np.ndarray:
    delta = r.mean - r.before
    state["m"] = beta * state.get("m", 0.0) + (1 - beta) * delta
    state["v"] = grow(state.get("v", np.zeros_like(delta)), delta**2)
    return r.before + rate * state["m"] / (np.sqrt(state["v"]) + 0.01)


def adam(r: Round, state: State) -> np.ndarray:
    rate = 0.2 * np.sqrt(1 - 0.99 ** (r.number + 1)) / (1 - 0.8 ** (r.number + 1))
    return adaptive(r, state, lambda v, d: 0.99 * v + (1 - 0.99) * d, 0.8, rate)


def bulyan(r: Round, _: State) -> np.ndarray:
    chosen = r.weights[krum(r, 1, 5)]
    nearest = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0)[:3]
    return np.take_along_axis(chosen, nearest, axis=0).mean(0)


def q_fair(r: Round, _: State) -> np.ndarray:
    """Return Algorithm 1 of Li et al. 2020 (arXiv:1905.10497), of rate 0.5 and q = 2."""
    rate, q, loss = 0.5, 2.0, r.losses + 1e-10
    steps = (r.before - r.weights) / rate
    bound = q * loss ** (q - 1) * (steps**2).sum(1) + loss**q / rate
    return r.before - loss**q @ steps / bound.sum()


def clipped(r: Round, norm: float) -> np.ndarray:
    update = r.weights - r.before
    shrunk = np.minimum(1, norm / np.linalg.norm(update, axis=1))
    return r.before + r.examples @ (update * shrunk[:, None]) / r.examples.sum()


def adaptively_clipped(r: Round, state: State) -> np.ndarray:
    norm = state.get("norm", 3.0)
    above = (np.linalg.norm(r.weights - r.before, axis=1) > norm).mean()
    state["norm"] = norm * exp(-0.5 * (above - 0.6))
    return clipped(r, norm)


ORACLES: Mapping[str, tuple[str, Callable[[Round, State], np.ndarray]]] = {
    "Bulyan": ("num_malicious_nodes=1", bulyan),
    "DifferentialPrivacyServerSideAdaptiveClipping": (
        "noise_multiplier=0, initial_clipping_norm=3, clip_norm_lr=0.5, target_clipped_quantile=0.6",
        adaptively_clipped,
    ),
    "DifferentialPrivacyServerSideFixedClipping": (
        "noise_multiplier=0.0, clipping_norm=1.5",
        lambda r, state: clipped(r, 1.5),
    ),
    "FedAdagrad": ("eta=0.2, tau=0.01", lambda r, state: adaptive(r, state, lambda v, d: v + d, 0.0, 0.2)),
    "FedAdam": ("eta=0.2, beta_1=0.8, tau=0.01", adam),
    "FedAvg": ("", lambda r, state: r.mean),
    "FedAvgM": ("server_momentum=0.9, server_learning_rate=0.5", momentum),
    "FedMedian": ("", lambda r, state: np.median(r.weights, axis=0)),
    "FedTrimmedAvg": ("beta=0.3", lambda r, state: np.sort(r.weights, axis=0)[2:-2].mean(0)),
    "FedYogi": (
        "eta=0.2,beta_1=0.8,beta_2=0.9,tau=0.01",
        lambda r, state: adaptive(r, state, lambda v, d: v - (1 - 0.9) * d * np.sign(v - d), 0.8, 0.2),
    ),
    "Krum": ("num_malicious_nodes=2", lambda r, state: mean_of(r, krum(r, 2, 1))),
    "MultiKrum": ("num_malicious_nodes=1, num_nodes_to_select=3", lambda r, state: mean_of(r, krum(r, 1, 3))),
    "QFedAvg": ("client_learning_rate=0.5, q=2.0", q_fair),
}


def expected(players: list[FramePlayer], oracle: Callable[[Round, State], np.ndarray], last: int = 2) -> np.ndarray:
    """Return the model after the last round, by a loop over vectors."""
    network = TINY.changed(patch=2)
    before, state = flat(players[0].rows_of_round_0(network), network), State()
    examples = np.array([player.description.sequences[0] for player in players])
    for number in range(1, last + 1):
        generators = [np.random.default_rng([player.number, number - 1]) for player in players]
        draws = [[g.normal(size=(*spec.shape, 1)).ravel() for spec in network.weights()] for g in generators]
        updates = np.array([np.concatenate(drawn) for drawn in draws]) / 8
        updates += np.array([[player.shift] for player in players])
        losses = np.array([1.0 if number == 1 else player.loss for player in players])
        before = oracle(Round(number, before, before + updates, examples, losses), state)
    return before


def test_every_strategy_of_flower_is_accepted_or_refused_with_a_reason():
    """Each is in the table of oracles or in that of refusals."""
    assert names() == sorted(ORACLES)


@pytest.mark.parametrize("strategy", ORACLES)
def test_a_strategy_equals_its_numpy_oracle(strategy: str, tmp_path: Path):
    """Two rounds of seven weighted sites, with strategy state, end in the oracle's model, which all sites evaluate."""
    sites = [site(name) for name in MANY]
    settings, oracle = ORACLES[strategy]
    record, model = ended(LocalGrid(sites), run_of(tmp_path, strategy, settings))
    np.testing.assert_allclose(model, expected([s.player() for s in sites], oracle), rtol=0, atol=1e-8)
    assert [(of.number, of.attempt, of.sites) for of in record.rounds] == [(1, 1, tuple(MANY)), (2, 1, tuple(MANY))]
    assert [metrics(of.validation["b"]).loss for of in record.rounds] == pytest.approx([0.4, 0.4])
    assert record.settings["strategy"] == strategy
    assert record.settings["strategy-settings"] == settings


class LastFirst(LocalGrid):
    """A grid where the reply to the last request arrives first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        last = next(reversed(self._replies), None)
        return super().pull_messages([message for message in message_ids if message == last])


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "MultiKrum", "QFedAvg"])
def test_the_order_of_replies_does_not_matter(strategy: str, tmp_path: Path):
    """Replies in reverse order, from nodes of other numbers, give the same model, to the bit."""
    settings = ORACLES[strategy][0]
    first = ended(LocalGrid([site(name) for name in MANY]), run_of(tmp_path / "first", strategy, settings))[1]
    last = ended(LastFirst([site(name) for name in MANY[::-1]]), run_of(tmp_path / "last", strategy, settings))[1]
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize(
    ("strategy", "settings", "robust"),
    [
        ("Krum", "num_malicious_nodes=1", True),
        ("MultiKrum", "num_malicious_nodes=1, num_nodes_to_select=3", True),
        ("Bulyan", "num_malicious_nodes=1", True),
        ("FedMedian", "", True),
        ("FedTrimmedAvg", "beta=0.2", True),
        ("FedAvg", "", False),
    ],
)
def test_an_outlier_does_not_move_a_robust_strategy(strategy: str, settings: str, robust: bool, tmp_path: Path):
    """One site of seven whose weights are 5 off moves each weight no further than the others do, and is flagged."""
    sites = [site(name, shift=5.0 if name == "g" else 0.0) for name in MANY]
    record, model = ended(LocalGrid(sites), run_of(tmp_path, strategy, settings, rounds=1))
    honest = [s.player() for s in sites[:-1]]
    low, high = (expected(honest, lambda r, s, of=of: of(r.weights, axis=0), 1) for of in (np.min, np.max))
    inside = (low - 1e-9 <= model) & (model <= high + 1e-9)
    assert inside.all() if robust else not inside.any()
    assert list(record.rounds[0].flagged) == ["g"]


def test_float32_weights_stay_float32(tmp_path: Path):
    """FedAdam computes in float64; the model is rounded to the run's dtype, from which the next round starts."""
    model = ended(LocalGrid([site(name) for name in MANY]), run_of(tmp_path, "FedAdam", dtype="float32"))
    assert {rows.dtype for rows in EncryptedModel.load(tmp_path / "model.npz").rows.values()} == {np.dtype("float32")}
    double = ended(LocalGrid([site(name) for name in MANY]), run_of(tmp_path / "double", "FedAdam"))
    np.testing.assert_allclose(model[1], double[1], atol=1e-4)


@dataclass
class Remembering(FrameSite):
    """A site that always gives the same reply to a request of one round and attempt."""

    trained: dict[tuple[int, int], RecordDict] | None = None

    def answer(self, message: Message) -> RecordDict | None:
        if message.metadata.message_type != "train":
            return super().answer(message)
        self.trained = self.trained or {}
        request = messages.TrainRequest.read(message.content)
        at = request.round, request.attempt
        if at not in self.trained:
            reply = super().answer(message)
            assert reply is not None
            self.trained[at] = reply
        return self.trained[at]


@pytest.mark.parametrize(
    ("strategy", "every"),
    [
        ("FedAdam", 7),
        pytest.param("FedAdam", 1, marks=pytest.mark.slow),
        ("FedAvgM", 19),
        ("DifferentialPrivacyServerSideAdaptiveClipping", 19),
    ],
)
def test_a_strategy_is_resumed(strategy: str, every: int, tmp_path: Path):
    """After a crash at any call the run ends in the weights of an uninterrupted run, bit for bit."""
    settings = ORACLES[strategy][0]

    def sites() -> list[Remembering]:
        return [Remembering(site(name).description, rejected=((2, 1),)) for name in "ab"]

    def run(out: Path) -> RunConfig:
        return run_of(out, strategy, settings, sites=2, quorum=2)

    peace = CrashingGrid(sites(), 10**6)
    model = ended(peace, run(tmp_path / "unbroken"))[1]
    for died in range(0, 10**6 - peace.left, every):
        those, out = sites(), tmp_path / str(died)
        with pytest.raises(Crashed):
            federate(CrashingGrid(those, died), run(out))
        np.testing.assert_array_equal(ended(LocalGrid(those), run(out))[1], model, err_msg=f"died at call {died}")
        assert [len(s.trained or {}) for s in those] == [3, 3]


@pytest.mark.parametrize("strategy", ["FedAdam", "FedAvgM", "DifferentialPrivacyServerSideAdaptiveClipping"])
def test_a_rejected_attempt_leaves_no_trace(strategy: str, tmp_path: Path):
    """A round that the sites rejected at first ends as if it had been accepted at once."""
    settings, oracle = ORACLES[strategy]
    sites = [site(name, rejected=((1, 1), (2, 1))) for name in MANY]
    record, model = ended(LocalGrid(sites), run_of(tmp_path, strategy, settings))
    np.testing.assert_allclose(model, expected([s.player() for s in sites], oracle), rtol=0, atol=1e-8)
    assert [of.attempt for of in record.rounds] == [2, 2]


def test_noise_of_differential_privacy_is_drawn_anew_each_attempt(tmp_path: Path):
    """The models of two runs differ by noise of the deviation that multiplier, clipping and sites give."""
    settings = "noise_multiplier=0.7, clipping_norm=2.0"
    name = "DifferentialPrivacyServerSideFixedClipping"
    models = [
        ended(LocalGrid([site(n) for n in MANY]), run_of(tmp_path / out, name, settings, rounds=1))[1]
        for out in ("one", "other")
    ]
    plain = expected([site(n).player() for n in MANY], lambda r, s: clipped(r, 2.0), 1)
    for model in models:
        assert (model - plain).std() == pytest.approx(0.7 * 2.0 / 7, rel=0.2)
    assert np.abs(models[0] - models[1]).min() > 0


@pytest.mark.parametrize(
    ("strategy", "settings", "text"),
    [
        ("Bulyan", "num_malicious_nodes=2", "Bulyan of the updates of 7 sites makes no model from them"),
        ("MultiKrum", "num_nodes_to_select=0", "MultiKrum of the updates of 7 sites makes no model from them"),
        ("QFedAvg", "client_learning_rate=0", "QFedAvg of the updates of 7 sites failed: float division by zero"),
        ("FedAdam", "eta=1e308, beta_2=0", "FedAdam of the updates of 7 sites makes values that are not finite"),
    ],
)
def test_a_strategy_without_a_result_fails_the_run(strategy: str, settings: str, text: str, tmp_path: Path):
    """The log names the strategy and the number of updates, and no site gets an invalid state."""
    sites = [site(name) for name in MANY]
    with pytest.raises(FederationError, match="round 1 was tried 2 times"):
        federate(LocalGrid(sites), run_of(tmp_path, strategy, settings))
    assert RunState(tmp_path).log.read_text().count(text) == 2
    assert not [kind for s in sites for kind in s.asked if kind == "query.accept"]


def test_the_sites_get_the_new_model_and_its_contributors(tmp_path: Path):
    """The request has the new state and the list of contributors, no update, and not the previous state."""
    sites = [site(name) for name in "abc"]
    ended(LocalGrid(sites), run_of(tmp_path, "FedMedian", sites=3, rounds=1))
    trained = next(seen for seen in sites[0].seen if messages.STATE in seen.array_records.get(messages.ARRAYS, {}))
    asked = next(seen for seen in sites[0].seen if messages.SUM in seen)
    arrays = messages.record(asked, messages.ARRAYS, ArrayRecord)
    assert arrays.keys() == {messages.AFTER}
    before, after = (GlobalState.from_bytes(messages.state_of(*of)) for of in ((trained,), (asked, messages.AFTER)))
    assert messages.AcceptRequest.read(asked).base == before.digest
    assert after == replace(before, round=1, rows=after.rows)


def refused(strategy: str, settings: str = "", *, scheme: Scheme = "more-frame", **changes: object) -> str:
    with pytest.raises(ConfigError) as raised:
        ChosenStrategy.of(run_of(Path("out"), strategy, settings, **changes), scheme)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"secure-aggregation": True},
            "needs secure-aggregation=false: a strategy of Flower reads each update, got 'FedAdam'",
        ),
        ({"server-optimizer": "fedadam"}, "takes the place of the server optimizer, got 'FedAdam' beside fedadam"),
        ({"server-learning-rate": 0.5}, "got 'FedAdam' beside fedavg at rate 0.5: leave out one of them"),
        ({"scheme": "more"}, "on rows of slots a median or a norm is not that of the weights"),
    ],
)
def test_settings_that_exclude_a_strategy_are_refused(changes: dict[str, str], text: str):
    """Secure aggregation, rows of slots and a second optimizer are one line each, before a run starts."""
    assert text in refused("FedAdam", "eta=0.1", **changes)


def test_strategy_settings_without_a_strategy_are_refused():
    """They would have no effect."""
    assert "strategy-settings is for a strategy, got 'eta=0.1': name one" in refused("", "eta=0.1")


@pytest.mark.parametrize(
    ("strategy", "settings", "text"),
    [
        ("FedProx", "proximal_mu=0.1", "set proximal, and no strategy"),
        ("FedXgbBagging", "", "it grows trees"),
        ("FedXgbCyclic", "", "it grows trees"),
        ("DifferentialPrivacyClientSideFixedClipping", "", "use the ServerSide one"),
        ("DifferentialPrivacyClientSideAdaptiveClipping", "", "use the ServerSide one"),
        *((name, "", "must be one of Bulyan, ") for name in ("fedavg", "Strategy", "Result", "fedavg.FedAvg", "os")),
    ],
)
def test_an_unsuitable_strategy_is_refused(strategy: str, settings: str, text: str):
    """Trees, loss terms, clipping at clients and unknown names are refused, with what to do."""
    assert text in refused(strategy, settings)


def test_refusals_are_of_strategies_that_flower_has():
    """Each refused name is a class of Flower."""
    import flwr.serverapp.strategy as flower

    assert REFUSED.keys() <= set(flower.__all__)


@pytest.mark.parametrize(
    ("strategy", "settings", "text"),
    [
        ("FedAdam", "lr=0.1", "got 'lr=0.1': FedAdam takes eta (float), beta_1 (float), beta_2 (float), tau (float)"),
        ("FedAdam", "eta", "eta must be a finite number, got ''"),
        ("FedAdam", "eta=fast", "eta must be a finite number, got 'fast'"),
        ("FedAdam", "eta=nan", "eta must be a finite number, got 'nan'"),
        ("FedAdam", "eta=1, eta=2", "each name once, got 'eta=2'"),
        ("FedAdam", "eta_l=0.1", "FedAdam takes eta (float)"),
        ("FedAdam", "fraction_train=0.5", "FedAdam takes eta (float)"),
        ("FedAvg", "eta=0.1", "FedAvg takes none"),
        ("Krum", "num_malicious_nodes=1.5", "num_malicious_nodes must be a whole number, got '1.5'"),
        ("QFedAvg", "q=1", "must give client_learning_rate, got 'q=1': QFedAvg takes client_learning_rate (float)"),
        ("FedTrimmedAvg", "beta=0.5", "does not fit FedTrimmedAvg of 3 sites: `beta` must be in the range [0, 0.5)."),
        ("DifferentialPrivacyServerSideFixedClipping", "clipping_norm=1", "must give noise_multiplier"),
        (
            "DifferentialPrivacyServerSideFixedClipping",
            "noise_multiplier=1, clipping_norm=1, num_sampled_clients=5",
            "takes noise_multiplier (float), clipping_norm (float)",
        ),
        (
            "DifferentialPrivacyServerSideAdaptiveClipping",
            "noise_multiplier=1",
            "does not fit DifferentialPrivacyServerSideAdaptiveClipping of 3 sites: If not specified",
        ),
    ],
)
def test_settings_of_a_strategy_are_checked(strategy: str, settings: str, text: str):
    """Unknown names, wrong types, missing ones and invalid values are one line that lists the valid settings."""
    assert text in refused(strategy, settings)


def test_the_command_refuses_a_strategy_that_does_not_fit_the_domain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """For a domain with rows of slots it is one line, before the first call to SuperLink."""
    card, out = tmp_path / "domain.card", tmp_path / "out"
    card.write_text(DOMAIN.card().to_json())
    given = ("--state", tmp_path, "--domain", card, "--sites", 2, "--out", out)
    assert main(["run", *map(str, given), "--set", "secure-aggregation=false", "--set", "strategy=FedMedian"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "strategy=FedMedian is for domains of the scheme more-frame, this one is of more" in line
    assert not out.exists()


def test_a_refused_run_sends_no_request(tmp_path: Path):
    """The ServerApp checks the domain card before it waits for sites."""
    grid = LocalGrid([site(name) for name in MANY])
    with pytest.raises(ConfigError, match="FedProx"):
        federate(grid, run_of(tmp_path, "FedProx"))
    assert [s.asked for s in grid.sites.values()] == [[]] * len(MANY)
