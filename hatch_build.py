"""The wheel's build: cross-compiles the kernels for every device into the one py3-none-any wheel.

FLATLM_BUILD_KERNELS says which: `all`, `host` (what this machine loads) or `none` (Numba compiles them on
first use). Default: all for a wheel, none for an editable install, whose sources change.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

HOME = "https://example.org/flatlm"  # of the repository; a placeholder until it has an address

CHOICES = {"all": [], "host": ["--host"], "none": None}


class AddressesHook(MetadataHookInterface):
    """The addresses in a wheel's metadata, all of them below HOME."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        metadata["urls"] = {
            "Homepage": HOME,
            "Documentation": f"{HOME}/docs",
            "Changelog": f"{HOME}/CHANGELOG.md",
            "Issues": f"{HOME}/issues",
        }


class KernelsHook(BuildHookInterface):
    """Fills kernels_arm/native before the wheel's files are collected; git ignores that folder."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("FLATLM_BUILD_KERNELS") or ("none" if version == "editable" else "all")
        if wanted not in CHOICES:
            raise ValueError(f"FLATLM_BUILD_KERNELS={wanted}: one of {', '.join(CHOICES)}")
        flags, folder = CHOICES[wanted], Path(self.root, "kernels_arm", "native")
        if flags is None:
            return
        self.app.display_waiting("Compiling the kernels, two to three minutes …")
        for old in folder.glob("flatlm-*"):
            old.unlink()
        script = str(Path(self.root, "scripts", "build_kernels.py"))
        subprocess.run([sys.executable, script, *flags, str(folder)], check=True, stdout=subprocess.DEVNULL)
        build_data["artifacts"].append("/kernels_arm/native/*")
