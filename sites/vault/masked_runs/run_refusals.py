"""Refusals of a vault in a masked run: fixed texts, so that none tells the coordinator anything of a site's data.

The vault's own log has the reasons. Other texts, such as that of missing statements, name public facts
alone.
"""

from typing import Final

NO_CONTRACT: Final = "this vault has not accepted that contract: ask it to accept first"
OVER: Final = "this vault has left that run, or the run has ended here: start another one"
OTHER_REQUEST: Final = "this vault has replied to another request of that phase, and repeats that reply alone"
OTHER_ROUND: Final = "this vault works on another round of the run: resume from its newest statements"
LOCKED: Final = "the model of that round was opened by this vault in another round or run, and is not opened again"
BURNED: Final = "this vault has burned that round: it releases nothing in it"
TRAINED: Final = "this vault has masked an update in that run: it cannot abandon it"
RELEASED: Final = "this vault has released its mask in that round: it cannot burn it"
NO_UPDATE: Final = "this vault cannot make an update of what was sent: its own log says why"
FALSE_SUM: Final = "the sum, a tag or a mask does not fit what the members have signed: the round cannot be opened"
NOT_OPENED: Final = "no updates within the bounds sum to what was opened: the run ends at its last certified state"
RESTORED: Final = (
    "this vault's journal is older than what it signed: it leaves the run, and returns with a new identity"
)
UNLIKE: Final = "the members certified another state than this vault computed: use one fedpp and one NumPy everywhere"
OTHER_DATA: Final = (
    "this vault serves another dataset than it accepted the contract with: start it with that one, or let the run "
    "continue under a revision that counts the new data"
)
UNVERIFIED: Final = (
    "too few members of the revision were in the run before, and know its base: more of them than may collude must stay"
)
UNENDORSED: Final = (
    "this vault has no endorsement of the model or state that it would start from: `fedpp-site endorse` makes one"
)
NOT_LIFTED: Final = (
    "this vault's staff has not lifted the lock of a site that the revision leaves out: `fedpp-site lift` does, "
    "and puts that site's update at risk"
)
NO_REPORT: Final = "the contract has no per-site reports, or there are no figures yet"
