"""The command ``fpnlab``."""

import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fpnlab.config import Experiment
    from fpnlab.data.dataset import Dataset

EXIT_CODES = """\b
Exit codes: 0 done; 2 a config or command line that cannot be right; 3 data that cannot be
read; 4 the run diverged; 5 a folder or checkpoint that cannot be used; 75 interrupted and
saved: run the same command again to go on."""


class Laboratory(click.Group):
    """The group of all commands; an error that names its exit code is a message, not a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            click.echo(f"fpnlab {ctx.invoked_subcommand}: {error}", err=True)
            sys.exit(code)


class Configured(click.Command):
    """A command that takes a config, and overrides of its fields as further options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of fields under the options."""
        from fpnlab.fields import fields

        with formatter.section("Fields of the experiment, e.g. --train.batch_size 8"):
            formatter.write_dl(
                [
                    (f"--{path} {kind}", f"{meaning} [{default}]")
                    for path, kind, default, meaning in fields()
                ]
            )


def configured(name: str) -> Any:
    """Returns a decorator that makes a function a command over a config with overrides."""
    passing = {"ignore_unknown_options": True, "allow_extra_args": True}
    return main.command(name, cls=Configured, context_settings=passing)


config_argument = click.argument("config", type=click.Path(dir_okay=False, path_type=pathlib.Path))
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Folder for results.  [default: runs/<name of the config>]",
)


@click.group(
    cls=Laboratory,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="fpnlab")
def main() -> None:
    """Train ResNet-FPN detectors and compare their normalizations across batch sizes.

    An experiment is a TOML file; any field of it can be overridden on the command line, e.g.
    fpnlab train configs/bccd.toml --data.root ~/bccd --train.batch_size 8
    """
    from fpnlab.allocator import keep_freed_memory

    keep_freed_memory()  # Before JAX starts its threads.


@configured("train")
@config_argument
@out_option
@click.pass_context
def train(ctx: click.Context, config: pathlib.Path, out: pathlib.Path | None) -> None:
    """Train one detector as CONFIG says, measure it, and write a report.

    Run it again to go on after an interruption; a finished run is not run again.
    """
    import dataclasses

    from fpnlab.config import Trial
    from fpnlab.progress import Watcher
    from fpnlab.report import write_run_report
    from fpnlab.study.signals import Stop
    from fpnlab.study.trial import run_trial

    experiment = dataclasses.replace(_experiment(ctx, config), study=None)
    folder = out or pathlib.Path("runs") / config.stem
    trial = Trial(
        config.stem, config.stem, experiment.train.batch_size, experiment.seed, experiment
    )
    dataset = _data(experiment)
    with Stop() as stop, Watcher() as watcher:
        watcher.start([trial])
        watcher.begin(trial)
        result = run_trial(trial, dataset, folder, stop=stop, report=watcher.record)
        watcher.end(trial, result)
    _print_metrics(result["metrics"])
    click.echo(f"report: {write_run_report(folder)}")
    if result["status"] == "diverged":
        click.echo(f"diverged: {result['error']}; try a lower train.learning_rate", err=True)
        sys.exit(4)


@configured("study")
@config_argument
@out_option
@click.pass_context
def study(ctx: click.Context, config: pathlib.Path, out: pathlib.Path | None) -> None:
    """Run every trial of CONFIG's [study], and write a report.

    Run it again to go on after an interruption: finished trials are not run again.
    """
    from rich.console import Console

    from fpnlab.progress import Watcher
    from fpnlab.report import summary_table, write_report
    from fpnlab.study.run import run_study
    from fpnlab.study.signals import Stop

    experiment = _experiment(ctx, config)
    folder = out or pathlib.Path("runs") / config.stem
    command = shlex.join(["fpnlab", *sys.argv[1:]])
    dataset = _data(experiment)
    with Stop() as stop, Watcher() as watcher:
        summary = run_study(
            experiment, dataset, folder, command=command, stop=stop, watcher=watcher
        )
    console = Console()
    console.print(summary_table(summary))
    for finding in summary["findings"]:
        console.print(f"- {finding}", markup=False, highlight=False)
    click.echo(f"report: {write_report(folder)}")


@main.command("evaluate")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def evaluate(run: pathlib.Path) -> None:
    """Measure the last checkpoint of the run folder RUN again, and print its metrics.

    Batch norm is measured three ways: by running, population and batch statistics.
    """
    from fpnlab.config import read_run
    from fpnlab.study.trial import evaluate_run

    _use_compilation_cache()
    experiment = read_run(run)
    _print_metrics(evaluate_run(run, experiment, _data(experiment)))


@main.command("report")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def report(folder: pathlib.Path) -> None:
    """Write the report of a study or run FOLDER anew, finished or not."""
    from fpnlab.report import write_report, write_run_report

    write = write_report if (folder / "study.json").exists() else write_run_report
    try:
        click.echo(f"report: {write(folder)}")
    except (OSError, ValueError) as error:
        click.echo(f"fpnlab report: {error}", err=True)
        sys.exit(5)


@configured("show")
@config_argument
@click.option(
    "--run",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
    help="Run folder whose last checkpoint predicts.  [default: none, only true boxes]",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="test",
    show_default=True,
    help="Images to draw; those to train on are drawn as training sees them.",
)
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="Images.")
@click.option(
    "--score",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Lowest score of a predicted box that is drawn.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    default="show.png",
    show_default=True,
    help="PNG file to write.",
)
@click.pass_context
def show(
    ctx: click.Context,
    config: pathlib.Path,
    run: pathlib.Path | None,
    split: str,
    count: int,
    score: float,
    out: pathlib.Path,
) -> None:
    """Draw samples of CONFIG's data, and what a trained run finds in them, to a PNG file."""
    from fpnlab.study.show import draw

    experiment = _experiment(ctx, config)
    dataset = _data(experiment)
    draw(experiment, dataset, run, split=split, count=count, score=score).save(out)
    click.echo(str(out))


@configured("config")
@config_argument
@click.pass_context
def config_command(ctx: click.Context, config: pathlib.Path) -> None:
    """Print CONFIG resolved: every field of the experiment, defaults included, as JSON."""
    from fpnlab.config import resolved

    click.echo(json.dumps(resolved(_experiment(ctx, config)), indent=2))


def _experiment(ctx: click.Context, path: pathlib.Path) -> "Experiment":
    from fpnlab.config import load

    _use_compilation_cache()
    return load(path, list(_overrides(ctx.args)))


def _overrides(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (path, value) from words like ``--a.b 1`` and ``--a.b=1``."""
    rest = iter(words)
    for word in rest:
        path, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not path:
            raise click.UsageError(
                f"{word!r} is neither an option nor a field like --train.examples"
            )
        given = value if equals else next(rest, None)
        if given is None:
            raise click.UsageError(f"--{path} needs a value, e.g. --{path} 1")
        yield path, given


def _use_compilation_cache() -> None:
    import jax

    home = os.environ.get("FPNLAB_CACHE") or pathlib.Path.home() / ".cache" / "fpnlab"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _data(experiment: "Experiment") -> "Dataset":
    """Returns the experiment's data; tells what was left out of them, or why there are none."""
    from fpnlab.data.load import load

    try:
        dataset = load(experiment.data)
    except (OSError, ValueError) as error:
        click.echo(
            f"fpnlab: {error}\nThe folder is the field data.root: --data.root PATH", err=True
        )
        sys.exit(3)
    for problem in dataset.problems:
        click.echo(f"data: {problem}", err=True)
    return dataset


def _print_metrics(metrics: dict[str, dict[str, float]]) -> None:
    names = list(metrics["running"])
    width = max(map(len, names))
    click.echo(f"{'points':{width}}" + "".join(f"{source:>10}" for source in metrics))
    for name in names:
        row = [metrics[source][name] for source in metrics]
        cells = "".join(f"{'-' if v is None or v != v else f'{100 * v:.1f}':>10}" for v in row)
        click.echo(f"{name:{width}}{cells}")
