"""The ``graphopt`` command, also as ``python -m graphopt``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. An interrupt ends it with one line and exit code 130, while it is imported as well."""
    try:
        from graphopt.cli.main import app

        app(prog_name="graphopt")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
