"""The verbs of `flatlm`, one module each; `flatlm.runtime.cli` finds them by name."""
