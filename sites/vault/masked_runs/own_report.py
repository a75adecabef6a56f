"""Own report of a site: the evaluation counts of its own data in each round, in `FOLDER/reports/CONTRACT.json`.

The vault writes the file for its hospital. Only sums over the cohort leave the site, unless the contract has per-site
reports.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import VaultError
from fedpp.files import make_folder, replace
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import MAX_FIGURES
from fedpp.values import canonical

from . import run_refusals
from .accepted_contract import AcceptedContract
from .run_limits import require_allowed
from .run_site import RunSite
from .run_stages import RunStages

REPORTS = "reports"
MODE = 0o640


@dataclass(frozen=True)
class OwnReport:
    """The report of one contract in a folder of runs."""

    folder: Path
    contract: RunContract

    @property
    def path(self) -> Path:
        """Return the file. Its name is the whole digest: whoever proposes contracts can find two that begin alike."""
        return self.folder / REPORTS / f"{self.contract.digest}.json"

    def rounds(self) -> dict[str, Any]:
        """Return the counts, as mappings, by the number of their state and the split: `3 validation`."""
        try:
            read = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            raise VaultError(f"the report {self.path.name} in the folder of runs is damaged: remove it") from None
        return dict(read["rounds"])

    def add(self, stage: RunStage, counts: AnyCounts) -> None:
        """Write the counts of a stage's state on the split that is due, unless they are there."""
        known, name = self.rounds(), f"{stage.chosen if stage.due == 'test' else stage.schedule.state} {stage.split}"
        if not counts.examples or known.get(name) == counts.to_mapping():
            return
        content = {
            "contract": self.contract.digest,
            "lifted": [lock.to_mapping() for lock in self.contract.lifted],
            "nonce": self.contract.nonce,
            "rounds": {**known, name: counts.to_mapping()},
            "sites": list(self.contract.names),
            "task": self.contract.spec.task.to_mapping(),
        }
        make_folder(self.path.parent, 0o750)
        replace(self.path, canonical(content), mode=MODE)


def report(of: RunSite, accepted: AcceptedContract, stages: RunStages) -> str:
    """Sign the figures of the own report, for the newest state; raise `VaultError` unless all sites report theirs."""
    number = stages.newest(accepted)[1].number
    if signed := accepted.mine("report", number):
        return signed.to_json()
    accepted.require_active()
    rounds = OwnReport(of.journal.folder, accepted.contract).rounds()
    if accepted.contract.reporting != "per-site" or not rounds:
        raise VaultError(run_refusals.NO_REPORT)
    require_allowed(of, accepted.contract)
    with accepted.writing():
        return accepted.sign("report", {"figures": newest(rounds)}, run=accepted.run, number=number)


def newest(rounds: Mapping[str, Any]) -> str:
    """Return the canonical JSON of the counts, of a long run those of the newest states that fit a statement."""
    kept = dict(rounds)
    while len(figures := canonical(kept).decode()) > MAX_FIGURES:
        del kept[min(kept, key=lambda name: int(name.partition(" ")[0]))]
    return figures
