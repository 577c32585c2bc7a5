"""Mamba 2 in config.json and in checkpoints: keys and names that several model types share."""

from __future__ import annotations

import math

from flatlm.export.config_keys import words
from flatlm.export.folds import squeezed
from flatlm.export.layers import Mamba2
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings

OBEYED = words("mamba_conv_bias mamba_proj_bias time_step_limit")
_SIZE = {"low": 1, "high": 1 << 20}


def mamba2(settings: Settings, hidden: int) -> Mamba2:
    """By the keys that begin with mamba_; `hidden` is the width of the stream."""
    heads = settings.get("mamba_n_heads", int, 128, **_SIZE)
    inner = settings.get("mamba_expand", int, 2, **_SIZE) * hidden
    inner = settings.get("mamba_d_ssm", int, inner, **_SIZE)
    size = inner // heads
    if settings.values.get("mamba_d_head", "auto") != "auto":
        size = settings.need("mamba_d_head", int, **_SIZE)
    if heads * size != inner:
        raise settings.wrong("mamba_n_heads", f"heads of {size} columns that make {inner}")
    return Mamba2(
        heads,
        size,
        settings.get("mamba_d_state", int, 256, **_SIZE),
        groups_of(settings, "mamba_n_groups", heads),
        settings.get("mamba_d_conv", int, 4, low=2, high=64),
        conv_bias=settings.get("mamba_conv_bias", bool, True),
        bias=settings.get("mamba_proj_bias", bool, False),
        least_step=least_step(settings),
    )


def groups_of(settings: Settings, key: str, heads: int) -> int:
    """Heads that share a key, as often as there are such: they must divide the heads."""
    groups = settings.get(key, int, 1, **_SIZE)
    if heads % groups:
        raise settings.wrong(key, f"a divisor of the {heads} heads")
    return groups


def least_step(settings: Settings) -> float:
    """Below which no step falls: the first of time_step_limit. The second must be no limit."""
    limit = settings.values.get("time_step_limit")
    if limit is None:
        return 0.0
    least, most = limit if isinstance(limit, list) and len(limit) == 2 else (None, None)
    if most == {"__float__": "Infinity"}:  # as transformers 5 writes what JSON has no number for
        most = math.inf
    if not isinstance(least, (int, float)) or not 0 <= least < 1e3 or most != math.inf:
        raise settings.wrong("time_step_limit", "a number from 0 on, and infinity")
    return float(least)


def names(at: str) -> dict[str, Name]:
    """Of the places of a `Mamba2`, whose weights the checkpoint has below `at` in a layer."""
    stored = {
        "in": ("in_proj", "ssm_in"),
        "dt_bias": ("dt_bias", "ssm_dt"),
        "decay": ("A_log", "ssm_a"),
        "skip": ("D", "ssm_d"),
        "norm_inner": ("norm", "ssm_norm"),
        "out": ("out_proj", "ssm_out"),
    }
    places = {f"mamba.{place}": Name(f"{at}.{hf}", gguf) for place, (hf, gguf) in stored.items()}
    return {**places, "mamba.conv": Name(f"{at}.conv1d", "ssm_conv1d", (squeezed,))}
