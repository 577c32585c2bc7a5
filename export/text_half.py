"""The text half of a checkpoint that also holds eyes and ears, as if it stood alone.

Its config lies under text_config, its weights below one of several prefixes; checkpoints of the text half
alone may have another prefix than transformers gives them, or none.
"""

from __future__ import annotations

import dataclasses

from flatlm.export.names import HEAD, Names
from flatlm.export.sources.source import Source
from flatlm.runtime.settings import Settings

_ROOTS = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
_SHARED = ("tie_word_embeddings", "quantization_config")  # said of the whole, and of the half where it is not


def text_config(config: Settings) -> Settings:
    """The text half's config.json: the whole, where there is one half."""
    half = config.table("text_config")
    if not len(half):
        return config
    above = {key: config[key] for key in _SHARED if key in config}
    return dataclasses.replace(half, values={**above, **half.values})


def text_half(source: Source, names: Names) -> Source:
    """The checkpoint with the weights of its text half called as `names` has them, the others as they are."""
    held, embedding = list(source.names()), names.stored("embedding").removeprefix(names.root)
    roots = (names.root, *_ROOTS)
    root = next((root for root in roots if f"{root}{embedding}.weight" in held), names.root)
    if root == names.root:
        return source
    head = f"{names.stored(HEAD)}.weight"
    ours = {}
    for name in held:
        if name.endswith(head) and name.removesuffix(head) in roots:
            ours[name] = head
        elif name.startswith(root) and not name.startswith(names.ignored):
            ours[name] = f"{names.root}{name.removeprefix(root)}"
    return source.renamed(ours)
