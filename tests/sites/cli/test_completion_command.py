"""The completion scripts of `fedpp-site`."""

import subprocess

import pytest
from hospital import site

from sites.cli.site_cli import PROGRAM

COMPLETE = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_fedpp_site
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script() -> str:
    """Return the script for bash."""
    return site("completion", "bash").stdout


def completed(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last of these words."""
    command = ["bash", "-c", COMPLETE, "bash", "fedpp-site", *words]
    done = subprocess.run(command, env={"SCRIPT": script}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_and_choices_are_completed(script: str):
    """Each by its beginning, after the command that it belongs to."""
    assert completed(script, "") == [*PROGRAM.commands, "-h", "--help", "--version"]
    assert completed(script, "re") == ["request", "revoke", "reencrypt", "review"]
    assert completed(script, "ingest", "--s") == [
        *("--series", "--skip-unreadable", "--stride", "--size", "--split", "--seed")
    ]
    assert completed(script, "ingest", "raw", "--layout", "ch") == ["chexpert"]
    assert completed(script, "completion", "z") == ["zsh"]
    assert completed(script, "keygen", "--out", "d", "--scheme", "") == ["more", "more-frame"]


def test_where_a_value_is_free_files_are_completed(script: str):
    """No word of ours is offered after an option that takes any value, and bash offers files."""
    assert completed(script, "ingest", "--out", "") == []
    assert completed(script, "keygen", "-n", "") == []
    assert script.endswith("complete -o bashdefault -o default -F _fedpp_site fedpp-site\n")


def test_zsh_has_the_same_candidates(script: str):
    """Both scripts share the function that lists them, which is plain shell."""
    zsh = site("completion", "zsh").stdout
    shared, _, own = script.partition("}\n")
    assert zsh.partition("}\n")[0] == shared
    assert "COMPREPLY" in own
    assert zsh.endswith("compdef _fedpp_site fedpp-site\n")
