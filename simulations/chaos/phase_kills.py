"""Kills in each phase of a masked run, and a site that is away in it: what a run ends with, or that it is refused.

A vault or the coordinator is killed at a random moment of a phase and started again. Whatever dies, what is on the disk
must be enough: the run ends with the state of an undisturbed run of the same contract, bit for bit.
"""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from typing import Any

from coordinator.server.masked.statement_store import CohortFile
from coordinator.server.progress import Progress
from coordinator.server.run_state import CohortChange, RunState
from fedpp.config.run_config import SiteConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.errors import FederationError
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.run_record import SEALED
from fedpp.vault_api.vault_client import VaultClient
from simulations.hospitals import Hospitals
from simulations.masked_start import EXPIRES
from sites.cli.pull_command import opened
from sites.vault.masked_runs.run_refusals import LOCKED

from .phase_programs import CLOSING, CONTEXT, coordinate, preload, serve_nodes
from .vault_process import VaultProcess

Row = dict[str, Any]
Run = dict[str, str | int | float]
ORDER = ("contract", "coins", "first state", "train", "release", "step", CLOSING, "fetch")
VAULT, COORDINATOR = "vault", "coordinator"
MORE = 10  # runs than twice the kills at most: a late kill falls into the next phase
PATIENT, IMPATIENT = 120.0, 1.0  # seconds that a run waits for a site
SECONDS = 300.0  # for an event
UNSTARTED = ("contract", "coins", "first state")
ENDED = "ended"
WITHOUT = {  # phase in which a site is away for good -> what becomes of the run
    **dict.fromkeys(UNSTARTED, "refused: too few sites"),
    **dict.fromkeys(("train", "step", CLOSING), "continued as revision 1"),
    "release": "refused by a lock; after a burn continued as revision 1",
    "fetch": ENDED,
}


class Coordinator:
    """The coordinator of a run in a process of its own, and the phase that it is in."""

    def __init__(self, federation: "Federation", run: Run, *, held: bool = False) -> None:
        """Start it, or start it again; a coordinator that is `held` waits for `resume` in each new phase."""
        self._pipe, reporting = CONTEXT.Pipe()
        self.phase = ""
        self._process: ForkServerProcess = CONTEXT.Process(
            target=coordinate,
            args=(federation.nodes, len(federation.sites), federation.away, run, reporting),
            kwargs={"held": held},
            daemon=True,
        )
        self._process.start()
        reporting.close()

    def next_phase(self, seconds: float = SECONDS) -> str:
        """Return the phase of its next request; an empty text at its end."""
        if not self._pipe.poll(seconds):
            raise FederationError(f"the coordinator sent nothing for {seconds:.0f} s after phase {self.phase}")
        try:
            self.phase = self._pipe.recv()
        except EOFError:
            return ""
        return self.phase

    def phase_now(self) -> str:
        """Return the phase of its last request so far."""
        with suppress(EOFError):
            while self._pipe.poll():
                self.phase = self._pipe.recv()
        return self.phase

    def resume(self) -> None:
        """Let it enter the phase that it waits for."""
        self._pipe.send(None)

    def kill(self) -> bool:
        """Kill it; return whether it was running."""
        running = self._process.is_alive()
        self._process.kill()
        self._process.join()
        return running

    def end(self) -> int | None:
        """Wait until it ends by itself; return its exit status."""
        while self.next_phase():
            pass
        self._process.join()
        return self._process.exitcode


@dataclass
class Federation:
    """Hospitals, the process of their ClientApps, and one vault process each."""

    folder: Path
    hospitals: Hospitals
    nodes: str  # address
    run: Run
    seconds: dict[str, float] = field(default_factory=dict)  # of each phase of an undisturbed run
    runs: int = 0
    vaults: dict[str, VaultProcess] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[SiteConfig, ...]:
        """Return the sites."""
        return self.hospitals.sites

    @property
    def away(self) -> Path:
        """Return the folder that names the nodes that are offline."""
        return self.folder / "away"

    @property
    def out(self) -> Path:
        """Return the folder of the newest run's results."""
        return self.folder / f"out-{self.runs}"

    @contextmanager
    def new_run(self) -> Iterator[None]:
        """Start all vaults without any memory of another run, for this block, and fix the run's contract."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.runs += 1
        RunState(self.out).fix("ab" * 32, EXPIRES)
        with ExitStack() as stack:
            for site in self.sites:
                stack.callback(self.end_vault, site)
                self.start_vault(site)
            yield
        shutil.rmtree(self.out / "vaults")

    def start_vault(self, site: SiteConfig) -> None:
        """Start a vault, or start it again."""
        name, domain, folder = site.dataset.name, site.evaluation_key.parents[1], self.out / "vaults"
        folder.mkdir(parents=True, exist_ok=True)  # the log too: a vault signs few proofs an hour
        vault = VaultProcess(
            *("--domain", domain, "--passphrase-file", self.hospitals.passphrase_file),
            *("--dataset", site.dataset, "--address", site.vault, "--policy", site.policy),
            *("--audit-log", folder / f"audit-{name}.log", "--runs", folder / name),
            errors=self.folder / f"vault-{name}.log",
        )
        vault.await_ready(site.vault)
        self.vaults[name] = vault

    def kill_vault(self, site: SiteConfig) -> None:
        """Kill a vault."""
        process = self.vaults[site.dataset.name].process
        process.kill()
        process.join()

    def end_vault(self, site: SiteConfig) -> None:
        """End a vault that was started."""
        if vault := self.vaults.pop(site.dataset.name, None):
            vault.end()

    def leave(self, number: int) -> None:
        """Let a site be away: its vault is killed, and its node offline."""
        self.kill_vault(self.sites[number - 1])
        self.away.mkdir(exist_ok=True)
        (self.away / str(number)).touch()

    def come_back(self, number: int) -> None:
        """Let a site be back."""
        self.start_vault(self.sites[number - 1])
        (self.away / str(number)).unlink()

    def coordinator(self, *, held: bool = False, wait: float = PATIENT) -> Coordinator:
        """Start the coordinator of the newest run, or resume it."""
        settings = {**self.run, "out": str(self.out), "wait-seconds": wait, "round-seconds": wait}
        return Coordinator(self, settings, held=held)

    def state(self) -> bytes:
        """Return the state that the newest run ended with; of a run that did not end nothing."""
        if not (self.out / SEALED).exists():
            return b""
        return opened(self.out / SEALED, self.hospitals.domain).state.to_bytes()

    def reason(self) -> str:
        """Return why the newest run failed."""
        return Progress.load(RunState(self.out).progress).reason


@contextmanager
def federation(folder: Path, hospitals: Hospitals, run: Run) -> Iterator[Federation]:
    """Run the ClientApps of these hospitals for this block; of their cohort one site may leave."""
    for site in hospitals.sites:
        policy = SitePolicy.load(site.policy)
        site.policy.write_text(policy.changed(limits=policy.limits.changed(max_changes=1)).to_yaml())
    preload()
    address = str(Path(hospitals.sites[0].vault.removeprefix("unix:")).with_name("nodes"))
    reader, ready = CONTEXT.Pipe(duplex=False)
    nodes = CONTEXT.Process(target=serve_nodes, args=(hospitals.sites, address, ready), daemon=True)
    nodes.start()
    try:
        if not reader.poll(SECONDS):
            raise FederationError("the process of the ClientApps does not start")
        yield Federation(folder, hospitals, address, run)
    finally:
        nodes.kill()
        nodes.join()


def phases(of: Federation, kills: int, seed: int = 0) -> Iterator[Row]:
    """Yield a row for each phase: kills in it, and a site that is away in it."""
    undisturbed = _undisturbed(of)
    made = Kills(of, undisturbed, Random(seed))  # noqa: S311  no secret depends on it
    while made.least() < kills and made.runs < 2 * kills + MORE:
        made.add(kills)
    for phase in ORDER:
        yield made.row(phase, kills)
    for phase in ORDER:
        yield _away(of, phase, undisturbed)


def _undisturbed(of: Federation) -> bytes:
    """Return the state of an undisturbed run, and note how long its phases take."""
    for _ in range(2):  # TensorFlow traces the training of the first one
        with of.new_run():
            coordinator, started, of.seconds = of.coordinator(), time.monotonic(), {}
            while phase := coordinator.next_phase():
                before, now = next(reversed(of.seconds), ""), time.monotonic()
                if before != phase:
                    of.seconds[before] = now - started
                    of.seconds[phase], started = 0.0, now
            of.seconds["fetch"] = time.monotonic() - started
        if coordinator.end():
            raise FederationError(f"an undisturbed run failed: {of.reason()}")
    return of.state()


@dataclass
class Kills:
    """Runs in whose phases a vault and the coordinator were killed."""

    of: Federation
    undisturbed: bytes
    random: Random
    runs: int = 0
    killed: Counter[tuple[str, str]] = field(default_factory=Counter)  # phase and program
    same: Counter[str] = field(default_factory=Counter)  # kills by phase in runs that ended alike
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def least(self) -> int:
        """Return the number of kills of the program in the phase that has fewest."""
        return min(self.killed[phase, program] for phase in ORDER for program in (VAULT, COORDINATOR))

    def add(self, kills: int) -> None:
        """Carry out a run with a kill of each program in each phase, where there are not so many yet."""
        self.runs += 1
        drawn = {phase: self.random.sample((VAULT, COORDINATOR), 2) for phase in ORDER}
        due = {
            phase: [each for each in programs if self.killed[phase, each] < kills] for phase, programs in drawn.items()
        }
        with self.of.new_run():
            done, status = self._disturbed(due)
        same = status == 0 and self.of.state() == self.undisturbed
        for phase, program in done:
            self.killed[phase, program] += 1
            self.same[phase] += same

    def row(self, phase: str, kills: int) -> Row:
        """Return the row of a phase."""
        of = {program: self.killed[phase, program] for program in (VAULT, COORDINATOR)}
        seconds = self.seconds[phase]
        return {
            "case": f"kills in {phase}",
            "as designed": min(of.values()) >= kills and self.same[phase] == sum(of.values()),
            "kills_of_a_vault": of[VAULT],
            "kills_of_the_coordinator": of[COORDINATOR],
            "same_state": self.same[phase],
            "seconds": sum(seconds) / max(1, len(seconds)),
            "seconds_undisturbed": self.of.seconds[phase],
        }

    def _disturbed(self, due: dict[str, list[str]]) -> tuple[list[tuple[str, str]], int | None]:
        """Carry out the newest run with kills; return those, and the exit status."""
        coordinator, done, entered, last = self.of.coordinator(), [], time.monotonic(), ""
        killed: Counter[str] = Counter()
        while phase := coordinator.next_phase():
            if phase != last:
                self.seconds[last].append(time.monotonic() - entered)
                entered, last = time.monotonic(), phase
            if not due[phase]:
                continue
            program = due[phase].pop()
            time.sleep(self.random.uniform(0.0, self.of.seconds[phase] / (1 + killed[phase])))  # the rest is shorter
            killed[phase] += 1
            if program == COORDINATOR:
                if coordinator.kill():
                    done.append((coordinator.phase_now(), program))
                    coordinator = self.of.coordinator()
            else:
                before, victim = coordinator.phase_now(), self.random.choice(self.of.sites)
                self.of.kill_vault(victim)
                done += [(before, program)] if coordinator.phase_now() == before else []
                self.of.start_vault(victim)
        self.seconds[last].append(time.monotonic() - entered)
        return done, coordinator.end()


def _away(of: Federation, phase: str, undisturbed: bytes) -> Row:
    """Let a site be away from the start of a phase: it comes back, or the run is to continue without it.

    A contract that did not start is given up: a resumed run makes another one, from other weights, for all its sites.
    """
    number = Random(phase).randrange(len(of.sites)) + 1  # noqa: S311  no secret depends on it
    with of.new_run():
        paused = _left(of, phase, number)
        of.come_back(number)
        status = of.coordinator().end()
        alike = of.state() == undisturbed
    with of.new_run():
        without = _without(of, number) if _left(of, phase, number) else ENDED
        if LOCKED in without:
            _burn(of, number)
            without = f"refused by a lock; after a burn {_without(of, number)}"
        (of.away / str(number)).unlink(missing_ok=True)
    return {
        "case": f"a site away in {phase}",
        "as designed": status == 0 and alike != (phase in UNSTARTED) and without == WITHOUT[phase],
        "paused": paused,
        "same_state_when_back": alike,
        "without": without,
    }


def _left(of: Federation, phase: str, number: int) -> bool:
    """Carry out the newest run until it ends, with a site away from the start of a phase; return whether it paused."""
    coordinator, last = of.coordinator(held=True, wait=IMPATIENT), ""
    while coordinator.next_phase():
        if coordinator.phase != last:
            last = coordinator.phase
            if last == phase:
                of.leave(number)
            coordinator.resume()
    return coordinator.end() != 0


def _without(of: Federation, number: int) -> str:
    """Resume the newest run without a site; return what becomes of it."""
    RunState(of.out).plan(CohortChange((of.sites[number - 1].dataset.name,)))
    if of.coordinator(wait=IMPATIENT).end():
        return "refused: " + ("too few sites" if "the run needs" in of.reason() else of.reason())
    model = CertifiedModel.from_bytes((of.out / SEALED).read_bytes())
    model.require(of.hospitals.domain.card().ca_key)
    return f"continued as revision {model.contract.revision}"


def _burn(of: Federation, number: int) -> None:
    """Let a site that is back burn the round, and the run learn of it."""
    of.come_back(number)
    if cohort := CohortFile(RunState(of.out)).load():
        with VaultClient(of.sites[number - 1].vault) as vault:
            vault.burn(cohort.contract.digest, "ab" * 32)
    of.coordinator(wait=IMPATIENT).end()
