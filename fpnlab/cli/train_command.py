"""The command ``fpnlab train``."""

import functools
import pathlib
import sys

import click

from fpnlab.cli.command_line import (
    STOPPING,
    check_out,
    config_argument,
    configured,
    existing_option,
    given_experiment,
    loaded_data,
    out_option,
    print_metrics,
    say,
)


@configured("train", "Train one network, measure it, write a report.")
@config_argument
@out_option
@existing_option
@click.option(
    "--distributed",
    is_flag=True,
    help="Train as one of several processes that Slurm, Open MPI, Kubernetes or a TPU has "
    "started.  [default: one process]",
)
@click.option(
    "--coordinator",
    metavar="HOST:PORT",
    help="Train as one of several processes, all started with the same command; this is where "
    "process 0 can be reached.  [default: one process]",
)
@click.option(
    "--processes", type=click.IntRange(1), help="How many there are.  [default: one process]"
)
@click.option(
    "--process", type=click.IntRange(0), help="Number of this one.  [default: one process]"
)
@click.pass_context
def train(
    ctx: click.Context,
    config: pathlib.Path,
    out: pathlib.Path | None,
    allow_existing: bool,
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
) -> None:
    """Train one network as CONFIG says, measure it, and write a report.

    Run it again to go on after an interruption; a finished run is not run again, unless CONFIG has
    more examples than before: then it trains longer, where its schedule allows it.
    """
    check_out(_folder(config, out), allow_existing=allow_existing)
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise click.UsageError("--coordinator, --processes and --process go together; give all")
    if not (distributed or any(given)):
        _train(ctx, config, out)
        return
    from fpnlab.run.distributed import joined

    with joined(coordinator, processes, process) as first:
        _train(ctx, config, out, first=first)


def _folder(config: pathlib.Path, out: pathlib.Path | None) -> pathlib.Path:
    return out or pathlib.Path("runs") / config.stem


def _train(
    ctx: click.Context, config: pathlib.Path, out: pathlib.Path | None, *, first: bool = True
) -> None:
    """Runs a config's trial, or takes part in it."""
    from fpnlab.cli.progress import ProgressDisplay
    from fpnlab.config.trials import single
    from fpnlab.report import write_run_report
    from fpnlab.run.interrupts import Stop
    from fpnlab.run.run import follow_trial, run_trial
    from fpnlab.train.parallel import data_mesh

    trial = single(given_experiment(ctx, config), config.stem)
    experiment = trial.experiment
    folder = _folder(config, out)
    try:
        data_mesh(experiment.train.batch_size)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    dataset = loaded_data(experiment)
    if not first:
        with Stop(notice=STOPPING) as stop:
            follow_trial(trial, dataset, stop=stop)
        return
    with Stop(notice=STOPPING) as stop, ProgressDisplay() as display:
        display.start([trial])
        display.begin(trial)
        result = run_trial(
            trial,
            dataset,
            folder,
            stop=stop,
            report=functools.partial(display.record, trial),
            phase=functools.partial(display.phase, trial),
        )
        display.end(trial, result)
    page = write_run_report(folder)  # Before printing, which a closed pipe ends.
    print_metrics(result.metrics)
    say(f"report: {page}")
    if result.status == "diverged":
        say(f"diverged: {result.error}; try a lower train.learning_rate", err=True)
        sys.exit(4)
