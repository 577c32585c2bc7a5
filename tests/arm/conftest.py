"""Elsewhere than on AArch64 there is nothing here to collect."""

from flatlm.kernels_arm import cpu

if cpu.machine() != "aarch64":
    collect_ignore_glob = ["test_*.py"]
