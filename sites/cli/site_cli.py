"""`fedpp-site`: the commands of a hospital for its keys, its data, its models and its node.

Exit status 0: done; 1: failed, with one line on stderr; 2: wrong usage. Results go to stdout, notes to stderr.
"""

import logging
import sys
from collections.abc import Sequence

from fedpp.cli import Command, Program
from fedpp.texts import PrintableFormatter

PROGRAM = Program(
    name="fedpp-site",
    package=__package__ or "",
    description="Keys, data, models and node of one hospital of a federation.",
    commands={
        "keygen": Command("key_commands:keygen", "Found a key domain: secret, trainer's keys and public card"),
        "request": Command("key_commands:request", "Create a new site's identity and its membership request"),
        "invite": Command(
            "key_commands:invite", "Admit another hospital to the domain: seal the secret to its request"
        ),
        "accept": Command("key_commands:accept", "Become a member of a domain by an invitation"),
        "rotate": Command("key_commands:rotate", "Start a new key epoch with a new secret, and invite every member"),
        "revoke": Command("key_commands:revoke", "Start a new key epoch without one member"),
        "reencrypt": Command(
            "reencrypt_command:reencrypt", "Re-encrypt a dataset, a model or a checkpoint under a later key epoch"
        ),
        "card": Command("key_commands:card", "Print a domain's public card and its verification phrase"),
        "survey": Command("data_commands:survey", "Check raw data before ingest, and show it on a page"),
        "ingest": Command(
            "data_commands:ingest", "Read raw sequences, split them by patient, and write them encrypted"
        ),
        "inspect": Command("data_commands:inspect", "Print the public description of an encrypted dataset"),
        "verify": Command(
            "data_commands:verify", "Check every byte of an encrypted dataset, and with --domain its seal"
        ),
        "train": Command("train_command:train", "Train a local model on this site's ciphertext"),
        "evaluate": Command("model_commands:evaluate", "Evaluate a model on a split, decrypted in the secret zone"),
        "predict": Command("model_commands:predict", "Print the decrypted probabilities of each sequence of a split"),
        "lookup": Command(
            "model_commands:lookup", "Name the patients behind pseudonyms, or show a model's worst errors on a page"
        ),
        "vault": Command("vault_commands:vault", "Serve the vault on a Unix socket or over mutual TLS"),
        "health": Command("vault_commands:health", "Check whether a vault answers"),
        "audit-log": Command("vault_commands:audit_log", "Verify an audit log, or print what is remembered of others'"),
        "endorse": Command(
            "masked_run_commands:endorse", "Let masked runs start from a model, or this site join a run at a state"
        ),
        "burn": Command("masked_run_commands:burn", "Sign that this site releases nothing in a run's next round"),
        "abandon": Command("masked_run_commands:abandon", "Leave a run that this site has not trained in"),
        "lift": Command(
            "masked_run_commands:lift",
            "Let a run continue without a site that has not burned its round, at that site's risk",
        ),
        "run-report": Command("masked_run_commands:run_report", "Print this site's own figures of its masked runs"),
        "vault-tls": Command(
            "vault_commands:vault_tls", "Create certificates for a vault and a trainer on two machines"
        ),
        "identity": Command("join_commands:identity", "Create the key pair of this site's node"),
        "policy": Command("approval_commands:policy", "Write a site's first policy: one dataset, no bundle approved"),
        "review": Command("approval_commands:review", "Unpack an app bundle, and compare it with the installed fedpp"),
        "approve": Command("approval_commands:approve", "Approve a bundle or a dataset in the policy, or withdraw it"),
        "doctor": Command("join_commands:doctor", "Check everything that `join` needs"),
        "join": Command("join_commands:join", "Run this site's SuperNode until SIGTERM or Ctrl-C"),
        "pull": Command("pull_command:pull", "Unseal the model of a finished run"),
        "completion": Command("completion_command:completion", "Print a completion script for bash or zsh"),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
