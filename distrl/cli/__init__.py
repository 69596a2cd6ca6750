"""The command line: `distrl --help`. Parses, calls, prints; mistakes of the user are one message and exit code 2.

A command imports what it needs when it runs, so that `distrl --help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.text import Text

from distrl.cli import cluster as cluster  # each module adds its commands to the application
from distrl.cli import machine as machine
from distrl.cli import models as models
from distrl.cli import settings as settings
from distrl.cli import sweeps as sweeps
from distrl.cli import tracking as tracking
from distrl.cli import train as train
from distrl.cli.app import app, err
from distrl.errors import Diverged, EnvError, UserError


def main() -> None:
    """Run the command line. User's mistakes exit with 2, what failed in training with 1."""
    from dotenv import load_dotenv

    sys.path.append(os.getcwd())  # an env or algorithm of the user's own may be a file there
    load_dotenv(Path.cwd() / ".env")
    try:
        app(standalone_mode=True)
    except UserError as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(2)
    except (EnvError, Diverged) as error:
        err.print(Text.assemble(("failed: ", "bold red"), str(error)))
        sys.exit(1)
    except BrokenPipeError:
        os._exit(1)
