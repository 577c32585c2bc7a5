"""The verbs of `flatlm`, one module each; `runtime.cli` finds them by name."""
