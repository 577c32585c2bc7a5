"""What runs on AArch64 only, with the prebuilt libraries: `scripts/arm/check` runs it under emulation."""
