"""The command ``fpnlab study``."""

import functools
import os
import pathlib
import shlex
import sys
from typing import Any

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
    say,
)


@configured("study", "Run the grid of trials of [study], write a report.")
@config_argument
@out_option
@existing_option
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that run trials side by side.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Run the workers as tasks of the Ray cluster at ADDRESS, or (local) of Ray here.  "
    "[default: processes]",
)
@click.option(
    "--slurm",
    metavar="KEY=VALUE,...",
    help="Run the workers as Slurm jobs with these options, e.g. partition=gpu,timeout_min=600.  "
    "[default: processes]",
)
@click.option(
    "--pack",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Most trials that one program trains together, where a short measurement says that it "
    "pays; 1: each by itself.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the trials and what they will take, after measuring a few steps; write nothing.  "
    "[default: run them]",
)
@click.pass_context
def study(
    ctx: click.Context,
    config: pathlib.Path,
    out: pathlib.Path | None,
    allow_existing: bool,
    workers: int,
    ray: str | None,
    slurm: str | None,
    pack: int,
    dry_run: bool,
) -> None:
    """Run every trial of CONFIG's [study], and write a report.

    Run it again to go on after an interruption: finished trials are not run again. Seeds, arms,
    axis values and tuned values may be added to CONFIG: only their trials are run.
    """
    from fpnlab.study.executors.local import SHARED_ACCELERATOR, machine_share

    folder = out or pathlib.Path("runs") / config.stem
    if not dry_run:
        check_out(folder, allow_existing=allow_existing)
    if workers > 1:
        # Before JAX starts. A dry run measures what a worker will have.
        own = machine_share(workers) if dry_run else SHARED_ACCELERATOR
        os.environ.update(own | os.environ)
    # Ray forks, which a process must not do once JAX has threads.
    executor = None if dry_run else _executor(workers, ray, slurm, folder)
    from fpnlab.config.trials import counted

    experiment = given_experiment(ctx, config)
    dataset = loaded_data(counted(experiment))
    if dry_run:
        from fpnlab.study.dry_run import describe, estimate

        report = functools.partial(say, err=True)
        say(describe(estimate(experiment, dataset, report=report), workers))
        return
    from fpnlab.cli.progress import ProgressDisplay, TerminalConsole
    from fpnlab.report import (
        answer_text,
        comparison_table,
        summary_table,
        verdict_text,
        write_report,
    )
    from fpnlab.run.interrupts import Stop
    from fpnlab.study.runner import run_study

    with Stop(notice=STOPPING) as stop, ProgressDisplay() as display:
        summary = run_study(
            experiment,
            dataset,
            folder,
            command=shlex.join(["fpnlab", *sys.argv[1:]]),
            stop=stop,
            listener=display,
            executor=executor,
            pack=pack,
        )
    page = write_report(folder)  # Before printing, which a closed pipe ends.
    console = TerminalConsole()
    console.print(summary_table(summary))
    if summary.verdicts:
        console.print(verdict_text(summary))
    console.print(answer_text(summary))
    if (table := comparison_table(summary)) is not None:
        console.print(table)
    say(f"report: {page}")
    if not summary.counts["done"]:
        first = summary.left_out[0]
        say(
            f"fpnlab study: all {len(summary.left_out)} trials failed or diverged, e.g. "
            f"{first.trial}: {first.error}",
            err=True,
        )
        sys.exit(4)


def _executor(workers: int, ray: str | None, slurm: str | None, folder: pathlib.Path) -> Any:
    """Returns what starts a study's workers; None where this process is the only one."""
    logs = folder / "workers"
    if ray and slurm:
        raise click.UsageError("--ray and --slurm are two ways; give one")
    if ray:
        from fpnlab.study.executors.ray import Ray

        return Ray(workers, ray)
    if slurm:
        from fpnlab.study.executors.slurm import Slurm

        pairs = [pair.partition("=") for pair in slurm.split(",")]
        if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
            raise click.UsageError(f"--slurm: {wrong[0]!r} is no KEY=VALUE, e.g. partition=gpu")
        return Slurm(workers, logs, {key: value for key, _, value in pairs})
    from fpnlab.study.executors.local import Local

    return Local(workers, logs) if workers > 1 else None
