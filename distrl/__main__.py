"""`python -m distrl`, and the `distrl` command. Listens to signals before it imports what takes a while."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from distrl import WINDOWS

_TRANSPARENT = "/sys/kernel/mm/transparent_hugepage/enabled"


def main() -> None:
    """Run the command line; whatever asks it to end, a command's end is clean and its exit code 130."""
    if sys.platform == "win32":
        sys.exit(f"error: {WINDOWS}")
    ask_for_huge_pages()
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


def ask_for_huge_pages() -> None:
    """Begin anew with `HUGE_PAGES`, which must be asked for before Python starts. What this process starts inherits them.

    Only a command can begin anew: a session, or what came through a pipe, would be lost.
    """
    from distrl.outside import HUGE_PAGES

    name, value = HUGE_PAGES
    with suppress(OSError), open(_TRANSPARENT) as file:
        if name not in os.environ and os.path.isfile(sys.argv[0]) and "[madvise]" in file.read():
            os.environ[name] = value
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
