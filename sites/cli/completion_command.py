"""`fedpp-site completion`: a script for bash or zsh, generated from the parsers of all commands.

Both scripts share one function of plain shell, which prints the candidates for a word; where it prints none, file
names are completed.
"""

import argparse
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Literal

from fedpp.cli import Parser

# The arguments of the function: the command, or an empty word, and the word before the one that is completed.
_BASH = """\
_fedpp_site() {
    local command= previous=${COMP_WORDS[COMP_CWORD-1]}
    (( COMP_CWORD > 1 )) && command=${COMP_WORDS[1]}
    COMPREPLY=($(compgen -W "$(_fedpp_site_words "$command" "$previous")" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o bashdefault -o default -F _fedpp_site fedpp-site
"""
_ZSH = """\
_fedpp_site() {
    local command=
    (( CURRENT > 2 )) && command=${words[2]}
    local -a candidates=(${(f)"$(_fedpp_site_words "$command" "${words[CURRENT-1]}")"})
    compadd -a candidates || _files
}
compdef _fedpp_site fedpp-site
"""


def add_completion_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `completion`."""
    to.add_argument("shell", choices=("bash", "zsh"), help="shell; load it with: source <(fedpp-site completion bash)")


def completion(*, shell: Literal["bash", "zsh"]) -> int:
    """Print a completion script."""
    from .site_cli import PROGRAM

    parser, commands = PROGRAM.parsers(*PROGRAM.commands)
    print(_words(parser, commands) + (_BASH if shell == "bash" else _ZSH), end="")
    return 0


def _words(parser: Parser, commands: Mapping[str, Parser]) -> str:
    """Return a shell function that prints the candidates, one a line."""
    cases, valued = [_case("' '*", [*commands, *parser.options()])], []
    for name, command in commands.items():
        options = command.options()
        for option, action in options.items():
            if action.choices is not None:
                cases.append(_case(quote(f"{name} {option}"), map(str, action.choices)))
            elif action.nargs != 0:
                valued.append(quote(f"{name} {option}"))
        cases.append(_case(f"{quote(f'{name} ')}*", [*command.positional_choices(), *options]))
    return "\n".join(
        ["_fedpp_site_words() {", '    case "$1 $2" in', _case("|".join(valued), ()), *cases, "    esac", "}", ""]
    )


def _case(pattern: str, words: Iterable[str]) -> str:
    found = " ".join(map(quote, words))
    action = f"printf '%s\\n' {found}" if found else ":"
    return f"        {pattern}) {action} ;;"
