"""Qwen3-Next: what Qwen3.5 with experts became, with rows of a key head together in the checkpoint."""

from __future__ import annotations

import functools

from flatlm.export.architecture import Architecture
from flatlm.export.archs import qwen3_5_moe_text as later
from flatlm.export.archs.qwen3_5_text import KINDS
from flatlm.export.names import Name

ARCHITECTURE = Architecture(
    functools.partial(later.decoder, fused=True),
    obeyed=later.OBEYED,
    defaults=later.DEFAULTS,
    names=later.NAMES.but(
        layer={
            "delta.qkvz": Name("linear_attn.in_proj_qkvz", "ssm_in"),
            "delta.ba": Name("linear_attn.in_proj_ba", "ssm_ba"),
        }
    ),
    layer_types=KINDS,
)
