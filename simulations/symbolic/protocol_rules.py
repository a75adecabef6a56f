"""Rules of a masked run as data, what breaks without each of them, and the limits that remain with all of them.

Every rule can be switched off. The search must then find what CONTROLS says; or the rule is one of REDUNDANT, as others
do its work. Signatures, hashes, seals and masks hold by assumption.
"""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "lock": "a vault releases for one cohort and plan for the weights of a base model, for ever",
    "plan in lock": "the lock names the plan beside the cohort",
    "no second mask": "an update whose mask was released in one context is released in no other, save after a burn",
    "cohort size": "a cohort has at least min_honest + colluders members",
    "copies count": "a restored or copied vault counts as a colluder, until it is a new member",
    "statement chain": "a site refuses a statement that does not continue what it saw of that member in this run",
    "burn before move": "a lock moves to a smaller cohort only after each site that is left out has burned the context",
    "burn of a context": "who burned releases nothing for any T of that context, not only for the T that it names",
    "counts in vector": "evaluation counts are values of the masked vector",
    "counts in digest": "the digest of a state covers the opened counts",
    "challenge after sum": "the challenge of the linear check follows from the hash of the sum",
    "sum in T": "T covers the hash of the sum, which is so fixed before any release",
    "one T": "a vault names one T in a context, for ever",
    "base in context": "the context of masks and signatures names the base state",
    "t certificates": "a base state needs the signatures of t members",
    "endorsement": "an initial model that is not drawn by all members needs the endorsement of each site's operator",
    "one state": "a vault signs one state of a round, for ever",
    "agreed revision": "a revision starts when its whole cohort has signed that no lock forbids it",
    "certified base": "a vault signs a revision only with the certificate of the base at which it starts",
    "one successor": "a vault signs one successor of a run, and another only after it abandoned the first",
    "t of the old": "a revision needs the signatures of t members of the run that it continues",
    "agreement binds": "a vault that signed a revision releases nothing in the old run until it abandons the revision",
    "no way back": "a vault that has masked its update in a revision does not abandon it on its own",
    "shared abandonment": "it does when another member has abandoned the revision, which can then never release",
    "coin commitment": "each member fixes its coin before any coin is revealed",
    "coins in fresh": "fresh weights are drawn from the coins of all members",
    "bounded starts": "a vault reveals a bounded number of coins a day",
    "one nonce": "a vault signs one contract of a nonce",
}
ALL = frozenset(RULES)
OF_STARTS = {"coin commitment", "coins in fresh", "bounded starts", "one nonce"}  # rules before the first round
Rules = tuple[str, ...]

FEW = "a known sum has too few honest sites"
SHARED = "two known sums of one base model share a site"
MIXED = "a known sum mixes base models"
PLANS = "a known sum mixes plans"
KNOWING = "colluders chose their part knowing the sum"
FALSE = "a false sum is stepped"
SPLIT = "two sites step different sums of one context"
STATES = "two states of a round are certified"
CHOICE = "a site trains a model that the adversary chose"
UNNOTICED = "a copied vault continues beside a site that has seen more of it"
FORK = "a run has two active successors"
GROUND = "colluders chose fresh weights"
TRIED = "a second fresh model is tried in a day"
DEAD_END = "a world from which no run can be completed"

CONTROLS: Mapping[Rules, str] = {
    ("lock",): SHARED,
    ("plan in lock",): SHARED,
    ("no second mask",): KNOWING,
    ("cohort size",): FEW,
    ("copies count",): FEW,
    ("statement chain",): UNNOTICED,
    ("burn before move",): FEW,
    ("burn of a context",): FEW,
    ("counts in vector",): FEW,
    ("counts in digest",): PLANS,
    ("challenge after sum",): FALSE,
    ("sum in T",): SPLIT,
    ("one T",): KNOWING,
    ("t certificates",): CHOICE,
    ("endorsement",): CHOICE,
    ("one successor",): DEAD_END,
    ("t of the old",): FORK,
    ("agreement binds",): DEAD_END,
    ("no way back",): DEAD_END,
    ("shared abandonment",): DEAD_END,
    ("coin commitment",): GROUND,
    ("coins in fresh",): GROUND,
    ("bounded starts",): TRIED,
    ("base in context", "t certificates"): MIXED,
}
REDUNDANT: Mapping[Rules, str] = {
    ("base in context",): "one T fixes one sum, so one state of a round is certified",
    ("one state",): "one T fixes one sum, and a step has one result",
    ("base in context", "one state"): "one T fixes one sum",
    ("agreed revision",): "a lock forbids the P1 as well, and a vault can abandon the revision",
    ("certified base",): "a vault can abandon a revision whose base is never certified",
    ("one nonce",): "coins follow from the contract, not from the nonce",
}
MORE_BURNS = "more burns"  # a rule that is not in force: what it costs is shown beside the limit that it closes
LIMITS: Mapping[str, str] = {
    "burn of a colluder": "a colluder burns after all honest sites released, and another colluder chooses its part of "
    "the revision's first round knowing the sum (G5); it needs two of them, and one leaves: a change that is counted",
    "no limit by more burns": "a lock would move only if as many members leave as may collude, or more have burned",
    "dead end by more burns": "a run that has lost one site could then not be completed: the rule is not in force",
    "burn of a lost machine": "an operator burns for a machine that had released: its update is the difference of two "
    "sums; so the burn of a lost machine risks that site's own update, and nobody else's; so does a lifted lock",
}
