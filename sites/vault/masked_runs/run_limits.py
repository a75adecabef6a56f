"""Limits of a run contract at one site: those of its policy, of its dataset, and of its number of runs.

Whatever a contract says beyond these is refused before anything is signed. The texts name the policy's own limits and
what the contract says, which are public, and nothing of the data.
"""

from collections.abc import Iterator
from datetime import timedelta

from fedpp.aggregation.ring import MIN_STEP
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import mean_bound
from fedpp.aggregation.step_bounds import local_steps
from fedpp.config.contract_limits import RunLimits
from fedpp.config.model_spec import MAX_PARAMETERS
from fedpp.config.run_config import SPLITS
from fedpp.config.task import LABELS_NEEDED
from fedpp.errors import DomainMismatchError, FederationError, PolicyError, VaultError
from fedpp.protocol.run_contract import FRESH, CohortMember, RunContract, certificate_hash
from fedpp.protocol.run_spec import RunSpec
from fedpp.texts import counted

from .accepted_contract import ABANDONED, AcceptedContract
from .run_site import RunSite

MAX_UNFINISHED = 2  # contracts at a time
MAX_ACCEPTED = 50  # contracts in a day, revisions and abandoned ones included
MAX_VALUES = 2 * MAX_PARAMETERS  # of a state, or of initial weights: more would take over 3 GB
MIN_MAX_STEP = 0.1  # learning rates a local step: less, like a server rate near zero, makes models that hardly differ
MAX_TAU = 0.1  # of fedadam and fedyogi: a greater one does the same
MIN_READINGS = 256  # pairs of two sites' updates that have one sum, about
SPACINGS = {"float32": 2.0**-25, "float64": 2.0**-54}  # of weights around a third
YEAR, DAY = timedelta(days=365), timedelta(days=1)


def require_limits(of: RunSite, contract: RunContract, parent: AcceptedContract | None) -> None:
    """Raise a `FedppError` unless the contract is one that this site may sign now; `parent` is what it revises."""
    policy = of.policy()
    contract.require()
    contract.require_current(of.now(), policy.limits.max_days)
    _require_own(of, contract)
    require_allowed(of, contract)
    largest = max(contract.n, parent.contract.n if parent else 0)
    if contract.changes > (most := policy.limits.changes(largest)):
        raise PolicyError(
            f"this site's policy allows {most} changes of so small a cohort, got {contract.changes}: the run "
            "continues with the sites that it had, or this site's staff raises limits: max-changes"
        )
    _require_room(of, contract, policy.limits)


def require_allowed(of: RunSite, contract: RunContract) -> None:
    """Raise `PolicyError` unless the policy, as it is now, allows what a contract says."""
    policy, own = of.policy(), contract.member(of.name)
    policy.require_bundle(contract.bundle)
    policy.require_participants(contract.n - 1)
    _require_patients(own, policy.evaluation.min_patients)
    if wrong := next(_beyond(contract, policy.limits, own), None):
        raise PolicyError(f"this site's policy does not allow the run: {wrong}; its staff decides")


def require_starts(of: RunSite) -> None:
    """Raise `PolicyError` if as many runs were started within a day as the policy allows without the operator."""
    started = _since(of, "started", DAY)
    if started >= (most := of.policy().limits.max_starts):
        raise PolicyError(f"this site started {started} runs within a day, and its policy allows {most}: wait")


def _require_own(of: RunSite, contract: RunContract) -> None:
    """Refuse a contract of another domain, task or site, or one that states this site's sizes or weight wrongly."""
    spec, domain, manifest = contract.spec, of.site.domain, of.dataset.manifest
    if spec.domain != domain.card().fingerprint:
        raise DomainMismatchError(
            f"the run is of domain {spec.domain[:16]}, this vault of {domain.card().fingerprint[:16]}: "
            "start a run of this domain and key epoch"
        )
    if misfit := spec.network.misfit(manifest.task):
        raise FederationError(misfit)
    if not manifest.classes:
        raise FederationError(f"a run needs labels, and this site's dataset has none: {LABELS_NEEDED}")
    if spec.network.parameters() * domain.n > MAX_VALUES:
        raise FederationError(f"a network of {spec.network.parameters()} parameters is too large for this vault")
    own = contract.member(of.name)
    sequences, patients = of.dataset.counts(), of.dataset.patients()
    sizes = tuple(sequences[split] for split in SPLITS), tuple(patients[split] for split in SPLITS)
    if own.certificate != certificate_hash(of.site.certificate) or (own.sequences, own.patients) != sizes:
        raise FederationError(
            f"the contract states another certificate or other sizes of {of.name} than its vault has: "
            "let the site describe itself again"
        )
    rate, ring = spec.training.hyperparameters.learning_rate, ring_of(spec)
    if rate * own.weight * 2.0**ring.fraction < MIN_STEP:
        raise FederationError(
            f"a step of rate {rate:g} of {own.weight} sequences is below {MIN_STEP} units of an aggregate of "
            f"{spec.examples}: use float64 weights, or a smaller max-update-value"
        )
    if _readings(contract) < MIN_READINGS:
        raise FederationError(
            f"steps of rate {rate:g}, with max-update-value {spec.bounds.max_update_value:g}, are so small that a sum "
            f"would show each site's {spec.training.dtype} update: take a larger rate, or a larger max-update-value"
        )


def _readings(contract: RunContract) -> float:
    """Return how many pairs of updates have one sum, about.

    An update is a difference of two weights, a multiple of their spacing; it counts times the site's weight. So a sum
    of few multiples can tell its addends, as 401 a + 307 b does for a and b below 150. It does not where it is encoded
    in units that are coarser than the multiples, nor for large a and b.
    """
    spec, ring, spacing = contract.spec, ring_of(contract.spec), SPACINGS[contract.spec.training.dtype]
    steps = 1 if spec.training.hyperparameters.proximal else min(_steps(spec, of) for of in contract.cohort)
    multiples = 2 * spec.training.hyperparameters.learning_rate * steps / spacing
    units = contract.total_weight * spacing * 2.0**ring.fraction
    return multiples / min(max(of.weight for of in contract.cohort), units)


def _steps(spec: RunSpec, of: CohortMember) -> int:
    return local_steps(spec.training, of.sequences[0])


def _require_patients(own: CohortMember, min_patients: int) -> None:
    """Refuse a split of some patients, but fewer than the policy allows figures of."""
    for split, patients in zip(SPLITS, own.patients, strict=True):
        if 0 < patients < min_patients:
            raise PolicyError(
                f"split {split} of {own.site} has {counted(patients, 'patient')}, and its policy allows no figures of "
                f"fewer than {min_patients}: ingest with other shares, or set evaluation: min-patients"
            )


def _beyond(contract: RunContract, limits: RunLimits, own: CohortMember) -> Iterator[str]:
    """Yield each limit that the contract exceeds, with the contract's value."""
    training, optimizer = contract.spec.training, contract.spec.server_optimizer
    server = optimizer.learning_rate
    rate, batch = training.hyperparameters.learning_rate, training.hyperparameters.batch_size
    largest, least = contract.spec.bounds.max_update_value, min(MIN_MAX_STEP, limits.max_step)
    moved = mean_bound(contract)
    strange = sorted(set(contract.names) - set(contract.names if limits.members is None else limits.members))
    initial = "fresh" if contract.initial == FRESH else "endorsed"
    too_large = min(batch, own.sequences[0]) > limits.max_batch_share * own.sequences[0]
    out_of_range = not limits.min_learning_rate <= rate <= limits.max_learning_rate
    checks = {
        "two sites hide nothing from each other, and two-sites is not accepted": (
            contract.n == 2 and limits.two_sites != "accepted"
        ),
        f"{', '.join(strange[:1])} is not among its members": bool(strange),
        f"min-honest is {contract.min_honest}, at least {limits.min_honest} are wanted": (
            contract.min_honest < limits.min_honest
        ),
        f"colluders is {contract.colluders}, at least {limits.colluders} are wanted": (
            contract.n > 2 and contract.colluders < limits.colluders
        ),
        f"{contract.rounds} rounds, at most {limits.max_rounds}": contract.rounds > limits.max_rounds,
        f"learning-rate {rate:g}, from {limits.min_learning_rate:g} to {limits.max_learning_rate:g}": out_of_range,
        f"server-learning-rate {server:g}, from {limits.min_server_learning_rate:g} to "
        f"{limits.max_server_learning_rate:g}": (
            not limits.min_server_learning_rate <= server <= limits.max_server_learning_rate
        ),
        f"max-update-value {largest:g}, at most {limits.max_update_value:g}": largest > limits.max_update_value,
        f"max-step {contract.max_step:g}, from {least:g} to {limits.max_step:g}": (
            not least <= contract.max_step <= limits.max_step
        ),
        f"max-update-value {largest:g}, at least the learning-rate {rate:g}": largest < rate,
        f"server-learning-rate {server:g} of {optimizer.name}, by which it moves each weight: at most the step bound "
        f"{moved:.2g}": "second" in optimizer.moments and server > moved,
        f"server-tau {optimizer.tau:g}, at most {MAX_TAU:g}": "second" in optimizer.moments and optimizer.tau > MAX_TAU,
        f"architecture {training.model.architecture}, allowed are {', '.join(limits.architectures)}": (
            training.model.architecture not in limits.architectures
        ),
        f"batch-size {batch}, a batch may have {limits.max_batch_share:g} of the training sequences": too_large,
        f"the initial model is {initial}, allowed is {', '.join(limits.initial_models)}": (
            initial not in limits.initial_models
        ),
        "reporting is per-site, allowed is aggregate": (
            contract.reporting == "per-site" and limits.reporting != "per-site"
        ),
        "it has no privacy budget, and max-epsilon is set": limits.max_epsilon is not None,
    }
    yield from (text for text, wrong in checks.items() if wrong)


def _require_room(of: RunSite, contract: RunContract, limits: RunLimits) -> None:
    rows = of.journal.rows("contracts", "digest, text", ended="")
    now = of.now().timestamp()
    parent = contract.parent.contract if contract.parent else ""
    unfinished = [digest for digest, text in rows if RunContract.from_json(text).expires > now and digest != parent]
    if (today := _since(of, "accepted", DAY)) >= MAX_ACCEPTED:
        raise VaultError(
            f"this vault accepted {today} contracts within a day, and accepts {MAX_ACCEPTED} at most: wait"
        )
    if len(unfinished) >= MAX_UNFINISHED:
        raise VaultError(
            f"this vault has {len(unfinished)} unfinished runs, and has {MAX_UNFINISHED} at most: resume one until it "
            "ends, or wait until its contract expires"
        )
    same = of.journal.rows("contracts", "ended", nonce=contract.nonce, revision=contract.revision)
    if any(ended != ABANDONED for (ended,) in same):
        raise FederationError("this vault has accepted another contract of that nonce: draw a new one")
    accepted = _since(of, "accepted", YEAR, runs=True)
    if contract.revision == 0 and accepted >= limits.max_runs:
        raise PolicyError(
            f"this site took part in {accepted} runs within a year, and its policy allows {limits.max_runs}: "
            "its staff can raise limits: max-runs"
        )


def _since(of: RunSite, column: str, span: timedelta, *, runs: bool = False) -> int:
    """Count the contracts whose time in a column is within a span before now.

    Of `runs` those count that were not abandoned, and those whose coin this site showed: a member that dislikes what
    the others' coins make could otherwise have runs abandoned and started until the first weights serve it.
    """
    begin = int((of.now() - span).timestamp())
    rows = of.journal.rows("contracts", f"{column}, revision, ended, started")
    counted = [
        at for at, revision, ended, coin in rows if not (runs and (revision or (ended == ABANDONED and not coin)))
    ]
    return sum(at is not None and at > begin for at in counted)
