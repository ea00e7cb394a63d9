"""`lossscope train`: train a workload and record the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lossscope.cli.terminal import echo

__all__ = ["train"]


def train(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A TOML file of settings.")] = None,
    workload: Annotated[str | None, typer.Option(help="What to train, see `lossscope list workloads`.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="See `lossscope list optimizers`.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of runs [runs].")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, split and order.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with the files of wikitext-2 or cifar10-resnet18.")] = None,
    preset: Annotated[str | None, typer.Option(help="economy, standard or full recording.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as options.rho=0.1.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run from its last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a workload and record every step; print the folder of the run.

    Settings come from the TOML file, then from options, then from --set; later ones win. The keys are the same.

    Example: lossscope train --workload digits-mlp --optimizer ars2-sync --steps 200 --set options.rho=0.05
    """
    given = {
        "workload": workload,
        "optimizer": optimizer,
        "name": name,
        "out": out,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "data": data,
        "preset": preset,
    }
    merged = _settings(config, {key: value for key, value in given.items() if value is not None}, settings or [])
    _run(merged, resume=resume, force=force, as_json=as_json)


def _settings(file: Path | None, given: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Merge the settings of the TOML file, the options and --set."""
    from lossscope.landscape.training.config import TrainConfig, assignment, from_toml

    merged: dict[str, Any] = {"options": {}}
    for part in (from_toml(file) if file else {}, given, *map(assignment, assignments)):
        TrainConfig.of(part)  # checked separately, so that no part hides an error in another
        merged = {**merged, **part, "options": {**merged["options"], **part.get("options", {})}}
    return merged


def _run(given: dict[str, Any], *, resume: bool, force: bool, as_json: bool) -> None:
    """Train, and print the run with its last results."""
    from lossscope.cli.progress import progress_bar
    from lossscope.landscape.analysis.series import first_step
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.storage.manifest import run_path
    from lossscope.landscape.training.config import TrainConfig
    from lossscope.landscape.training.training import recorded_config, train as train_run

    if resume and force:
        raise ConfigError("--resume continues a run and --force replaces it; use only one of them")
    config = TrainConfig.of(given)
    if resume:
        path = run_path(config.out, config.run_name)
        config = recorded_config(path).with_settings({"name": config.run_name, "out": config.out, **given})
    with progress_bar(config.run_name) as progress:
        run = train_run(config, resume=resume, force=force, progress=progress)
    reached = first_step(run, "test_accuracy", 0.99)
    last = run.steps["loss"].dropna()
    accuracy = run.steps["test_accuracy"].dropna()
    if as_json:
        import json

        fact = {
            "schema": 1,
            "run": str(run.path),
            "steps": int(run.manifest.get("steps", 0)),
            "loss": float(last.iloc[-1]) if len(last) else None,
            "test_accuracy": float(accuracy.iloc[-1]) if len(accuracy) else None,
            "first_step_at_99_percent": reached,
            "overhead": run.manifest.get("overhead"),
        }
        echo(json.dumps(fact, indent=2), format="json")
        return
    loss = f"loss {last.iloc[-1]:.4g}" if len(last) else "no loss"
    accurate = f", test accuracy {100 * accuracy.iloc[-1]:.2f} %" if len(accuracy) else ""
    accurate += f" (99 % first at step {reached})" if reached is not None else ""
    echo(f"{run.path}: {loss}{accurate}; read it with `lossscope report sharpness {run.path}`")
