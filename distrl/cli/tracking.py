"""Commands for MLflow: ui, register."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from distrl.cli.app import EnvModules, Run, app, err, out


@app.command()
def ui(
    run: Annotated[
        Path | None,
        typer.Argument(help="a run directory: its store, and its page; default: the runs of this directory"),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="default: 5000", show_default=False)] = None,
) -> None:
    """Look at runs in MLflow, on this machine alone, until Ctrl-C. The store is that of RUN, else of MLFLOW_TRACKING_URI (also
    in .env), else the one beside the runs of this directory."""
    from distrl.tracking import ui as pages
    from distrl.tracking.where import UI_HOST, UI_PORT

    port = port or UI_PORT
    uri = pages.find_store(run, Path.cwd())
    if pages.is_server(uri):
        _show(pages.server_page(uri, run))
        return
    with suppress(KeyboardInterrupt):
        err.print(f"Starting MLflow over {uri} ...")
        with pages.serve(uri, port) as server:
            _show(pages.page_of(uri, run, f"http://{UI_HOST}:{port}"))
            err.print("Ctrl-C ends it.")
            server.wait()
    err.print("MLflow ended.")


@app.command()
def register(
    run: Run,
    name: Annotated[str, typer.Option("--name", "-n", help="in the registry, such as flappy")],
    alias: Annotated[str | None, typer.Option("--alias", help="that this version gets, such as champion")] = None,
    agent: Annotated[
        str | None, typer.Option(help="of several policies: the agent whose one is meant", show_default=False)
    ] = None,
    env_module: EnvModules = None,
) -> None:
    """Put a trained model into MLflow's registry, tried on real observations. Imports the modules that the model names."""
    from distrl.tracking.registry import register as put

    done = put(run, name, alias, env_module or [], agent)
    out.print(f"{done.name}, version {done.version}{f', is now {alias}' if alias else ''}: {done.uri}")
    for line in done.told:
        out.print(f" {line}")
    out.print(f"Load:   mlflow.set_tracking_uri({done.store!r}); mlflow.pyfunc.load_model({done.uri!r})")
    serve = f"mlflow models serve --model-uri {done.uri} --env-manager local --host 127.0.0.1 --port 5001"
    out.print(f"Serve:  MLFLOW_TRACKING_URI={shlex.quote(done.store)} {serve}")


def _show(page: str) -> None:
    """Tell the address, and open it in a browser where there is one to be seen."""
    import webbrowser

    from distrl.models.play import display

    out.print(page)
    if display():
        webbrowser.open(page)
