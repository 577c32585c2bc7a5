"""Tiny tokenizers and scripted backends, made here so that tests of text need no model and no download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from flatlm.runtime.backends import Segment, check_fit

SPECIAL = ("<|end|>", "<|start|>", "<|stop|>")  # ids 0, 1, 2

CHATML = (
    "{% for message in messages %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level(merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """A tokenizer over bytes (ids 3 … 258), as GPT-2, Qwen and SmolLM have; `merges` in its own alphabet."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vocabulary = {token: number for number, token in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def sentencepiece(words: Sequence[str]) -> Tokenizer:
    """A tokenizer as Llama 2's: ▁ for a space, bytes <0x..> for unknown characters, begin token added."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *words]
    characters = sorted({c for word in words for c in word} - set(tokens))
    vocabulary = {token: number for number, token in enumerate([*tokens, *characters])}
    merges = [(word[:i], word[i:]) for word in words for i in range(1, len(word))]
    merges = [(a, b) for a, b in merges if a in vocabulary and b in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(content=" ", left=1)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", pair="<|start|> $A $B", special_tokens=[("<|start|>", 1)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_folder(
    folder: Path, tokenizer: Tokenizer, config: dict | None = None, generation: dict | None = None
) -> Path:
    """A model folder with the files that concern text."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    defaults = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**defaults, **(config or {})}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


class FakeBackend:
    """Logits that depend on the whole prefix, as a model's do, and on nothing else."""

    name = "fake"

    def __init__(self, vocab: int = 300, context: int = 64, slots: int = 1) -> None:
        self.vocab, self.context, self.slots = vocab, context, slots
        self.sequences: list[list[int]] = [[] for _ in range(slots)]
        self.slot = 0  # the sequence that is computed
        self.calls: list[list[int]] = []
        self.steps: list[list[tuple[int, int]]] = []  # slot and tokens of each segment of `forward_many`
        self.closed = False

    @property
    def ids(self) -> list[int]:
        return self.sequences[self.slot]

    @property
    def position(self) -> int:
        return len(self.sequences[0])

    @property
    def positions(self) -> list[int]:
        return [len(ids) for ids in self.sequences]

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        assert len(self.ids) + len(ids) <= self.context
        self.calls.append([int(number) for number in ids])
        rows = []
        for number in ids:
            self.ids.append(int(number))
            rows.append(self.row())
        return np.stack(rows)[max(len(ids) - logits, 0) :].astype(np.float32)

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        check_fit(self.positions, self.context, segments)
        self.steps.append([(segment.slot, len(segment.ids)) for segment in segments])
        assert len({slot for slot, _ in self.steps[-1]}) == len(segments)
        logits = []
        for segment in segments:
            self.slot = segment.slot
            logits.append(self.forward(np.asarray(segment.ids), segment.logits))
        self.slot = 0
        return logits

    def row(self) -> np.ndarray:
        return np.random.default_rng(self.ids).standard_normal(self.vocab)

    def truncate(self, length: int, slot: int = 0) -> int:
        del self.sequences[slot][length:]
        return len(self.sequences[slot])

    def copy(self, source: int, target: int, length: int) -> None:
        assert length <= len(self.sequences[source])
        self.sequences[target] = self.sequences[source][:length]

    def close(self) -> None:
        self.closed = True


class ScriptedBackend(FakeBackend):
    """Answers any prompt with `answer`, then with token 0 for ever; `interrupt_at` raises at that call."""

    def __init__(self, answer: Sequence[int], interrupt_at: int | None = None, **options) -> None:
        super().__init__(**options)
        self.answer, self.interrupt_at = list(answer), interrupt_at
        self.prompts = [0] * self.slots

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        if self.interrupt_at is not None and len(self.calls) == self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt
        if len(ids) > 1 or not self.ids:
            self.prompts[self.slot] = len(self.ids) + len(ids)
        return super().forward(ids, logits)

    def row(self) -> np.ndarray:
        row = np.zeros(self.vocab)
        place = len(self.ids) - self.prompts[self.slot]
        row[self.answer[place] if 0 <= place < len(self.answer) else 0] = 9.0
        return row
