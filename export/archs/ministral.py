"""Ministral (2024): Mistral, where layer_types says which layers have a window."""

from __future__ import annotations

from flatlm.export.archs.mistral import ARCHITECTURE

__all__ = ["ARCHITECTURE"]
