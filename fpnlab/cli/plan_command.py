"""The command ``fpnlab plan``."""

import functools
import pathlib
from typing import TYPE_CHECKING

import click

from fpnlab.cli.command_line import (
    config_argument,
    configured,
    given_experiment,
    loaded_data,
    say,
)

if TYPE_CHECKING:
    from fpnlab.study.power_plan import PowerPlan


@configured("plan", "Print the seeds and the time that a study needs.")
@config_argument
@click.option(
    "--effect",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Smallest difference between two arms that matters, in points of the study's metric.",
)
@click.option(
    "--spread",
    type=click.FloatRange(0, min_open=True),
    help="Standard deviation over seeds of paired differences, in points.  [default: --from]",
)
@click.option(
    "--from",
    "pilot",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
    help="Folder of a pilot study from which the spread is estimated.  [default: --spread]",
)
@click.option(
    "--power",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Wanted probability of deciding a difference of that size.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Level of the paired t test.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that run trials side by side.",
)
@click.pass_context
def plan(
    ctx: click.Context,
    config: pathlib.Path,
    effect: float,
    spread: float | None,
    pilot: pathlib.Path | None,
    power: float,
    alpha: float,
    workers: int,
) -> None:
    """Print how many seeds CONFIG's [study] needs to decide a difference, and how long they take.

    The time is measured on a few steps of each kind of trial; nothing is written.
    """
    if (spread is None) == (pilot is None):
        raise click.UsageError("give the spread: either --spread POINTS or --from FOLDER")
    from fpnlab.config.trials import counted
    from fpnlab.records.study_records import read_summary
    from fpnlab.study.dry_run import estimate
    from fpnlab.study.power_plan import plan_seeds, pooled_deviation

    experiment = given_experiment(ctx, config)
    if spread is None:
        assert pilot is not None
        spread, freedom = pooled_deviation(read_summary(pilot / "summary.json"))
        source = f"estimated from {pilot} with {freedom} degrees of freedom"
    else:
        source = "as given"
    dataset = loaded_data(counted(experiment))
    found = estimate(experiment, dataset, report=functools.partial(say, err=True))
    assert experiment.study is not None
    study = experiment.study
    planned = plan_seeds(
        found,
        study.seeds,
        effect=effect,
        deviation=spread,
        power=power,
        alpha=alpha,
        workers=workers,
    )
    say(_describe(planned, metric=study.metric, seeds=len(study.seeds), power=power, source=source))


def _describe(plan: "PowerPlan", *, metric: str, seeds: int, power: float, source: str) -> str:
    """Returns a plan as text: one sentence, and a row a number of seeds.

    Args:
      plan: The plan.
      metric: Metric that is compared.
      seeds: Number of seeds in the config.
      power: Wanted power, 0 to 1.
      source: Origin of the standard deviation, in words.
    """
    from fpnlab.study.dry_run import clock

    lines = [
        f"{plan.needed} seeds decide a true difference of {plan.effect:g} points of {metric} with "
        f"a probability of {power:g} or more;",
        f"the standard deviation over seeds of paired differences is {plan.deviation:.2f} points "
        f"({source}).",
        "",
        f"{'seeds':>5}  {'power':>5}  {'trials':>6}  {'time':>8}",
    ]
    for row in plan.rows:
        notes = [
            note
            for note, applies in (
                ("this config", row.seeds == seeds),
                ("needed", row.seeds == plan.needed),
            )
            if applies
        ]
        note = f"  <- {', '.join(notes)}" if notes else ""
        lines.append(
            f"{row.seeds:>5}  {row.power:>5.2f}  {row.trials:>6}  {clock(row.seconds):>8}{note}"
        )
    return "\n".join(lines)
