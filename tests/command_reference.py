"""The reference of all commands as Markdown, from the parsers: `python tests/command_reference.py` writes the page."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "commands.md"
INTRODUCTION = """\
# Commands

Every command ends with status 0 when it is done, 1 when it failed (the last line on stderr says why) and 2 for wrong
usage. Results go to stdout, notes to stderr. `--help` prints a command's options, `--version` the version. This page is
made from the code by `make docs`.
"""


def page() -> str:
    """Return the text of the page."""
    sys.path.insert(0, str(ROOT))
    from coordinator import __main__ as coordinator
    from simulations import __main__ as simulations
    from sites.cli import site_cli

    sections = [INTRODUCTION]
    for program in (site_cli.PROGRAM, coordinator.PROGRAM, simulations.PROGRAM):
        _, parsers = program.parsers(*program.commands)
        sections.append(f"## {program.name}\n\n{program.description}\n")
        for name, command in program.commands.items():
            sections.append(f"### {program.name} {name}\n\n{command.summary}.\n\n" + "\n".join(rows(parsers[name])))
    return "\n".join(sections) + "\n"


def rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a table of a command's arguments."""
    actions = [action for action in parser._actions if action.dest != "help"]
    if not actions:
        return
    yield "| argument | meaning |\n|---|---|"
    for action in actions:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest).upper()
        takes_value = action.option_strings and action.nargs != 0
        value = " " + str(action.metavar or action.dest).upper() if takes_value else ""
        choices = f"; one of {', '.join(map(str, action.choices))}" if action.choices else ""
        needed = " (needed)" if action.required and action.option_strings else ""
        help_ = parser._get_formatter()._expand_help(action) if action.help else ""
        meaning = f"{help_}{choices}{needed}".replace("|", "\\|")
        yield f"| `{name}{value}` | {meaning} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
