"""Other ways of secure aggregation, as their libraries have them: CKKS of TenSEAL, and SecAgg+ of Flower.

CKKS has parameters that are 128-bit secure by the Homomorphic Encryption Standard (2018): degree 8192 and at most 218
bits of primes. Two primes serve additions alone; a third leaves room for one product, as is usual. Each site holds the
secret key, as ours hold the domain's.

SecAgg+ (Bell et al. 2020) is Flower's legacy workflow and client modifier, both as they are, on an in-process grid: no
message is serialised. Its PRG is NumPy's `RandomState` of a 32-bit seed, which is no cryptographic one.
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from time import process_time
from typing import Any, Self

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

CKKS = ((8192, (60, 40, 60)), (8192, (60, 60)))  # degree, bits of primes
SCALE = 2.0**40
SHARES = (3, 0)  # of a key in SecAgg+: Flower's example has 3, so each site has two neighbours; 0: with all sites
EXAMPLES = 1000
_ACCURATE = 1e-3  # of the mean: SecAgg+ rounds to 2^-18, CKKS to less

Values = NDArray[np.float32 | np.float64]


@dataclass(frozen=True)
class Costs:
    """What one round costs a site and the coordinator, in seconds of the processor: other load changes them little."""

    site: float
    coordinator: float
    sent: int  # bytes, by a site
    error: float  # largest of the mean's values

    @classmethod
    def median(cls, of: Sequence["Costs"]) -> Self:
        """Return the medians of several rounds."""
        site, coordinator = (statistics.median(getattr(c, name) for c in of) for name in ("site", "coordinator"))
        return cls(site, coordinator, of[0].sent, max(costs.error for costs in of))

    def of_all(self, sites: int) -> float:
        """Return the seconds of all sites and the coordinator."""
        return sites * self.site + self.coordinator


def ckks_round(degree: int, primes: Sequence[int], values: Values, sites: int) -> Callable[[], Costs]:
    """Return a round of sites with the same values: each encrypts, the coordinator adds, each decrypts the sum."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=list(primes))
    context.global_scale = SCALE
    slots = degree // 2
    pieces = [values[start : start + slots] for start in range(0, len(values), slots)]

    def once() -> Costs:
        started = process_time()
        sent = [tenseal.ckks_vector(context, piece).serialize() for piece in pieces]
        encrypted = process_time()
        sums = [tenseal.ckks_vector_from(context, content) for content in sent]
        for _ in range(sites - 1):
            for total, content in zip(sums, sent, strict=True):
                total.add_(tenseal.ckks_vector_from(context, content))
        received = [total.serialize() for total in sums]
        added = process_time()
        opened = [tenseal.ckks_vector_from(context, content).decrypt() for content in received]
        mean = np.concatenate(opened) / sites
        ended = process_time()
        site = (encrypted - started) + (ended - added)
        return Costs(site, added - encrypted, sum(map(len, sent)), _error(mean, values))

    return once


def secagg_round(shares: int, values: Values, sites: int, *, away: int) -> Callable[[], Costs]:
    """Return a round of sites with the same values, of which `away` do not send their masked vector."""
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.supercore.task_identity import TaskIdentity

    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower sets them in its processes

    def once() -> Costs:
        clients = [_SecAggSite(values, number, away=number <= away) for number in range(1, sites + 1)]
        grid, context = _coordinator(clients, values)
        started = process_time()
        SecAggPlusWorkflow(shares, 2, max_weight=float(EXAMPLES))(grid, context)
        total = process_time() - started
        staying = [client.seconds for client in clients[away:]]
        coordinator = total - sum(client.answering for client in clients)
        mean = context.state.array_records["parameters"].to_numpy_ndarrays()[0]
        sent = max(client.sent for client in clients)
        return Costs(sum(staying) / len(staying), coordinator, sent, _error(mean, values))

    return once


@dataclass
class _SecAggSite:
    """Node of an in-process grid: Flower's modifier around a client that has trained already."""

    values: Values
    number: int
    away: bool
    seconds: float = 0.0  # of the modifier
    answering: float = 0.0  # with what the wire would do
    sent: int = 0
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        self.context = Context(1, self.number, {}, RecordDict(), {})

    def answer(self, request: Message) -> RecordDict | None:
        """Return the content of the modifier's reply, as the grid asks for it."""
        started = process_time()
        request.content = deepcopy(request.content)  # the modifier changes it, and the wire would have copied it
        reply = self._modified(request)
        self.answering += process_time() - started
        return reply

    def _modified(self, request: Message) -> RecordDict | None:
        from flwr.client.mod import secaggplus_mod
        from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage

        stage = request.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        if self.away and stage == Stage.COLLECT_MASKED_VECTORS:
            return None
        started = process_time()
        reply: RecordDict = secaggplus_mod(request, self.context, self._trained).content
        self.seconds += process_time() - started
        vectors: Any = reply.config_records[RECORD_KEY_CONFIGS].get(Key.MASKED_PARAMETERS, [])
        self.sent += sum(map(len, vectors))
        return reply

    def _trained(self, request: Message, _: Context) -> Message:
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.compat.common import recorddict_compat

        fitted = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self.values]), EXAMPLES, {})
        return Message(recorddict_compat.fitres_to_recorddict(fitted, keep_input=False), reply_to=request)


def _coordinator(clients: Sequence[_SecAggSite], values: Values) -> tuple[Any, Any]:
    """Return a grid of these clients, and the context of a legacy server that has registered them all."""
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.server import SimpleClientManager
    from flwr.server.compat.grid_client_proxy import GridClientProxy
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.strategy import FedAvg

    from simulations.in_process_engine import InProcessGrid

    grid, manager = InProcessGrid(clients), SimpleClientManager()
    for node in grid.get_node_ids():
        manager.register(GridClientProxy(node, grid, 1))
    strategy = FedAvg(min_fit_clients=len(clients), min_available_clients=len(clients))
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.array_records["parameters"] = ArrayRecord([np.zeros_like(values)])
    context.state.config_records["config"] = ConfigRecord({"current_round": 1})
    return grid, context


def _error(mean: NDArray[np.floating], values: Values) -> float:
    error = float(np.abs(mean - values).max())
    if not error < _ACCURATE:
        raise ValueError(f"the mean of equal updates is {error} off")
    return error
