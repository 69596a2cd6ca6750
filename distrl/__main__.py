"""`python -m distrl`, and the `distrl` command. Listens to signals before it imports what takes a while."""

from __future__ import annotations

import sys

from distrl import WINDOWS


def main() -> None:
    """Run the command line; whatever asks it to end, a command's end is clean and its exit code 130."""
    if sys.platform == "win32":
        sys.exit(f"error: {WINDOWS}")
    from distrl import signals  # which are other ones there

    with signals.handled(signals.leave):
        from distrl.cli import main as run

        try:
            with signals.handled(signals.interrupt):
                run()
        except KeyboardInterrupt:
            signals.exit_with(130)
        except SystemExit as ended:
            signals.exit_with(ended.code)


if __name__ == "__main__":
    main()
