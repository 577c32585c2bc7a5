"""All targets by name."""

from __future__ import annotations

from tests.fuzzing import artifacts, command_line, memories, server, sources, texts
from tests.fuzzing.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        artifacts.GRAPH,
        artifacts.MANIFEST_FILE,
        artifacts.DATA_FILES,
        texts.TOKENIZER,
        texts.TEMPLATE,
        sources.GGUF_FILE,
        sources.SAFETENSORS_FILE,
        sources.CONFIG,
        memories.JOURNAL,
        memories.KEPT,
        memories.RUN_FILE,
        command_line.COMMAND_LINE,
        server.SERVER,
    )
}
