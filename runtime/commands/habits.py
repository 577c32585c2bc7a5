"""Flags people know from elsewhere (llama.cpp, ollama, mlx-lm, transformers): taken where they mean something
here, answered with a sentence where they do not.

Only flags that a verb does not have itself are looked up, so nothing here can hide one of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flatlm.runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class Habit:
    """A flag from elsewhere.

    `flag` is ours of the same meaning, where the verb has it. Else `says` is the sentence: a note with which
    the work goes on where it is `harmless`, an error where the answer would be another one than meant.
    """

    names: tuple[str, ...]
    flag: str = ""
    says: str = ""
    takes: bool = True  # a value
    harmless: bool = False


HABITS = (
    Habit(("--n-predict", "--max-tokens", "--max-new-tokens", "--num-predict"), "--predict"),
    Habit(("--ctx-size", "--num-ctx", "--n-ctx"), "--ctx"),
    Habit(("--temperature",), "--temp"),
    Habit(("--system-prompt",), "--system"),
    Habit(("--repetition-penalty",), "--repeat-penalty"),
    Habit(("-r", "--reverse-prompt"), "--stop"),
    Habit(("-tb", "--threads-batch", "-b", "--batch-size", "-ub", "--ubatch-size"), harmless=True,
          says="one number of threads and steps of 512 tokens serve all (-t)"),
    Habit(("-no-cnv", "--no-conversation"), "--raw", takes=False,
          says="a chat is a conversation; flatlm generate --raw continues a text"),
    Habit(("-cnv", "--conversation", "-i", "--interactive"), takes=False, harmless=True,
          says="flatlm chat, or flatlm run without a prompt, is the conversation"),
    Habit(("-st", "--single-turn"), takes=False, harmless=True,
          says="flatlm generate, or flatlm run with a prompt, answers once"),
    Habit(("-hf", "-hfr", "--hf-repo"), "-m",
          says="models of the hub are given in the model's place: flatlm run OWNER/MODEL"),
    Habit(("-mu", "--model-url"), says="fetch the file first: flatlm run FILE.gguf"),
    Habit(("-ngl", "--gpu-layers", "--n-gpu-layers"), harmless=True,
          says="all layers run on the processor; on a GPU with --device cuda, through onnxruntime"),
    Habit(("-md", "--model-draft", "--draft-model"), "--draft",
          says="a smaller model drafts by --draft MODEL"),
    Habit(("-fa", "--flash-attn"), harmless=True, says="attention needs no switch"),
    Habit(("--mlock", "--no-mmap", "--mmap"), takes=False, harmless=True,
          says="weights are mapped, and packed for the kernels already"),
    Habit(("-ctk", "--cache-type-k", "-ctv", "--cache-type-v"),
          says="the cache's type is the model's: flatlm export --kv int8"),
    Habit(("--chat-template",), says="the model's own chat template is used; --raw is without"),
    Habit(("--jinja",), takes=False, harmless=True, says="chat templates are always jinja's"),
    Habit(("--lora", "--lora-scaled"), says="adapters have to be merged into the weights before export"),
    Habit(("-mm", "--mmproj", "--image"), says="flatlm runs language models, without pictures"),
    Habit(("--mirostat", "--xtc-probability", "--dry-multiplier", "--samplers"),
          says="there are --temp, --top-k, --top-p, --min-p and --repeat-penalty"),
    Habit(("--keep",), says="where a conversation grows too long, chat drops its oldest turns by /drop"),
    Habit(("--color", "--colors", "-co", "--no-display-prompt", "--log-disable", "-v", "--verbose"),
          takes=False, harmless=True, says="talk goes to stderr, 2>/dev/null silences it"),
)  # fmt: skip
_BY_NAME = {name: habit for habit in HABITS for name in habit.names}


def translated(words: Sequence[str], known: Mapping[str, bool], say: Callable[[str], None]) -> Iterator[str]:
    """The words of a command line with habits in our flags; `known` are those that the verb has, with whether
    a value follows.

    UsageError with the habit's sentence where it has no place here.
    """
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            yield from [word, *waiting]
            return
        name, mark, value = word.partition("=")
        flag, habit = _ours(name, known)
        if habit is not None and flag is None:
            if not habit.harmless:
                raise UsageError(f"{name}: {habit.says or 'this verb has no such flag'}")
            if habit.takes and not mark and waiting and _is_value(waiting[0]):
                waiting.pop(0)
            say(f"flatlm: {name} is not needed: {habit.says}")
            continue
        yield word if flag is None else flag + mark + value
        if flag is not None and known[flag] and not mark and waiting:
            yield waiting.pop(0)


def _ours(name: str, known: Mapping[str, bool]) -> tuple[str | None, Habit | None]:
    """The verb's flag that is meant by `name`, None where it has none; and the habit that it is."""
    if name in known or not name.startswith("-"):
        return (name if name in known else None), None
    dashed = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
    habit = _BY_NAME.get(dashed)
    if habit is None:
        return (dashed if dashed in known else None), None
    return (habit.flag if habit.flag in known else None), habit


def _is_value(word: str) -> bool:
    return not word.startswith("-") or word[1:].isdigit()
