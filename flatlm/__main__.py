"""The command line as a process, `flatlm` or `python -m flatlm`: Ctrl-C is one line from the start.

Its imports stand inside, where that is caught.
"""

import sys


def main() -> int:
    """Run `sys.argv`; returns the exit status."""
    try:
        from flatlm.runtime.cli import main as run

        return run()
    except KeyboardInterrupt:  # while importing, or between two lines of its own handling
        if sys.stderr is not None:
            sys.stderr.write("flatlm: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
