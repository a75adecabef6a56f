"""`python -m simulations`: simulated federations, the paper's experiment, benchmarks, chaos and attacks."""

import sys
from collections.abc import Sequence

from fedpp.cli import Command, Program

PROGRAM = Program(
    name="python -m simulations",
    package="simulations",
    description="Simulated federations, the paper's experiment, benchmarks, chaos and attacks on one machine.",
    commands={
        "list": Command("simulation_commands:list_scenarios", "Print the scenarios that come with the project"),
        "run": Command("simulation_commands:run", "Run a scenario, and write its report"),
        "phantom": Command("simulation_commands:phantom", "Write DICOM images of invented patients, for trials"),
        "paper": Command(
            "simulation_commands:paper", "Run the paper's experiment: three networks, in plaintext and on ciphertext"
        ),
        "bench": Command("simulation_commands:bench", "Measure time and memory, and print the figures"),
        "chaos": Command("simulation_commands:chaos", "Disturb whole deployments, and check what becomes of them"),
        "attack": Command(
            "simulation_commands:attack", "Attack masked runs as the documents say that they withstand, and check that"
        ),
        "symbolic": Command(
            "simulation_commands:symbolic", "Search all orders of a round's messages for attacks, without cryptography"
        ),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
