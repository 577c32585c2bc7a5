"""flatlm completion: what a shell needs to complete verbs, flags and models' names. Made from the parsers.

flatlm completion bash > ~/.local/share/bash-completion/completions/flatlm
flatlm completion zsh > ~/.zfunc/_flatlm                  with ~/.zfunc in fpath
flatlm completion fish > ~/.config/fish/completions/flatlm.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flatlm.runtime.cli import VERBS, parser_of
from flatlm.runtime.errors import BackendError


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag by its names. `choices` are the words that may follow; `help` is one sentence."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...] = ()
    takes: bool = True  # a value


@dataclass(frozen=True, slots=True)
class Verb:
    summary: str
    flags: tuple[Flag, ...]


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = "Print what a shell needs to complete `flatlm`: verbs, flags, and models by name."
    parser.add_argument("shell", choices=tuple(SHELLS), metavar="{" + ",".join(SHELLS) + "}")


def run(args: argparse.Namespace) -> int:
    """Print the script of the shell."""
    print(SHELLS[args.shell](verbs()))
    return 0


def verbs() -> dict[str, Verb]:
    """All verbs with their flags; of one whose packages are missing no flags are known."""
    found = {}
    for name, (_, summary, _) in VERBS.items():
        try:
            actions = parser_of(name)._actions
        except BackendError:
            actions = []
        found[name] = Verb(summary, tuple(_flag(one) for one in actions if one.option_strings))
    return found


def _flag(action: argparse.Action) -> Flag:
    takes = action.nargs is None or (isinstance(action.nargs, int) and action.nargs > 0)
    choices = tuple(map(str, action.choices or ()))
    metavar = action.metavar
    if not choices and isinstance(metavar, str) and metavar.startswith("{"):
        choices = tuple(metavar.strip("{}").split(","))
    text = (action.help or "").replace("%%", "%").split(";")[0].split(" (default")[0]
    return Flag(tuple(action.option_strings), text, choices, takes)


def _bash(known: Mapping[str, Verb]) -> str:
    cases, values = [], []
    for name, verb in known.items():
        names = " ".join(one for flag in verb.flags for one in flag.names)
        cases.append(f'        {name}) flags="{names}" ;;')
        for flag in verb.flags:
            if flag.choices:
                patterns = "|".join(f"{name}:{one}" for one in flag.names)
                words = " ".join(flag.choices)
                values.append(
                    f'        {patterns}) COMPREPLY=($(compgen -W "{words}" -- "$word")); return ;;'
                )
    return _BASH.format(
        verbs=" ".join(known), cases="\n".join(cases), values="\n".join(values), folder=_FOLDER
    )


def _zsh(known: Mapping[str, Verb]) -> str:
    shown = "\n".join(f"        {_quoted(f'{name}:{verb.summary}')}" for name, verb in known.items())
    cases = []
    for name, verb in known.items():
        flags = [_zsh_flag(one, flag) for flag in verb.flags for one in flag.names]
        cases.append(f"        {name}) _arguments {' '.join([*flags, _quoted('*:model:_flatlm_models')])} ;;")
    return _ZSH.format(verbs=shown, cases="\n".join(cases), folder=_FOLDER)


def _zsh_flag(name: str, flag: Flag) -> str:
    text = flag.help.replace("[", "(").replace("]", ")").replace(":", " -")
    after = ""
    if flag.takes:
        after = f":value:({' '.join(flag.choices)})" if flag.choices else ":value:_files"
    return _quoted(f"*{name}[{text}]{after}")


def _fish(known: Mapping[str, Verb]) -> str:
    lines = [
        f"complete -c flatlm -n __fish_use_subcommand -f -a {name} -d {_quoted(verb.summary)}"
        for name, verb in known.items()
    ]
    lines.append('complete -c flatlm -n "not __fish_use_subcommand" -a "(ls $flatlm_models 2>/dev/null)"')
    for name, verb in known.items():
        for flag in verb.flags:
            spelled = " ".join(_fish_flag(one) for one in flag.names)
            if flag.choices:
                spelled += f" -x -a {_quoted(' '.join(flag.choices))}"
            elif flag.takes:
                spelled += " -r"
            seen = f"'__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c flatlm -n {seen} {spelled} -d {_quoted(flag.help)}")
    return _FISH + "\n".join(lines)


def _fish_flag(name: str) -> str:
    if name.startswith("--"):
        return f"-l {name[2:]}"
    return f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_FOLDER = '"${FLATLM_MODELS:-${XDG_DATA_HOME:-$HOME/.local/share}/flatlm/models}"'
_BASH = """# bash completion of flatlm; made by `flatlm completion bash`
_flatlm() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local verb="${{COMP_WORDS[1]}}" flags=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case "$verb:$before" in
{values}
    esac
    case "$verb" in
{cases}
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
    else
        COMPREPLY=($(compgen -W "$(ls {folder} 2>/dev/null)" -- "$word") $(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _flatlm flatlm"""
_ZSH = """#compdef flatlm
# zsh completion of flatlm; made by `flatlm completion zsh`
_flatlm_models() {{
    local -a models
    models=(${{(f)"$(ls {folder} 2>/dev/null)"}})
    compadd -a models
    _files
}}
_flatlm() {{
    local -a verbs
    verbs=(
{verbs}
    )
    if (( CURRENT == 2 )); then
        _describe verb verbs
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case "$verb" in
{cases}
    esac
}}
_flatlm "$@\""""
_FISH = """# fish completion of flatlm; made by `flatlm completion fish`
set -l data (set -q XDG_DATA_HOME; and echo $XDG_DATA_HOME; or echo ~/.local/share)
set -g flatlm_models (set -q FLATLM_MODELS; and echo $FLATLM_MODELS; or echo $data/flatlm/models)
"""
SHELLS: dict[str, Callable[[Mapping[str, Verb]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
