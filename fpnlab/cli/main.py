"""The command ``fpnlab``."""

import itertools
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from fpnlab.config.experiment import Experiment
    from fpnlab.data.dataset import Dataset, Problem

EXIT_CODES = """\b
Exit codes: 0 done; 2 a config or command line that cannot be right; 3 data that cannot be
read; 4 the run diverged; 5 a folder or checkpoint that cannot be used, or a backend that
computes wrong numbers; 75 interrupted and saved: run the same command again to go on."""


class Command(click.Command):
    """A command without options of several letters behind one dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the words; click would take ``-batch`` for ``-b -a -t -c -h`` and print help."""
        flags = {
            word
            for option in self.get_params(ctx)
            if isinstance(option, click.Option) and (option.is_flag or option.count)
            for word in option.opts + option.secondary_opts
        }
        for before, word in zip(["", *args], args):
            value = before.startswith("--") and "=" not in before and before not in flags
            if not value and re.match(r"-[A-Za-z][\w.-]", word):
                raise click.UsageError(f"{word}: no such option; did you mean -{word}?", ctx)
        return super().parse_args(ctx, args)


class Laboratory(click.Group):
    """The group of all commands; an error that names its exit code is a message, not a trace."""

    command_class = Command

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


class Configured(Command):
    """A command that takes a config, and overrides of its fields as further options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the words; ``--help FIELD`` prints the help on a field."""
        for word, after in itertools.pairwise(args):
            path = after.removeprefix("--").replace("-", "_")
            if word in ctx.help_option_names and re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", path):
                from fpnlab.cli.field_help import describe_field

                click.echo(describe_field(path))
                ctx.exit()
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Returns completions of a word; of ``--tr`` also the fields of an experiment."""
        items = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("--"):
            from fpnlab.config.experiment import Experiment
            from fpnlab.config.hints import field_paths

            fields = (f"--{path}" for path in field_paths(Experiment))
            items += [CompletionItem(field) for field in fields if field.startswith(incomplete)]
        return items

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections of fields under the options."""
        from fpnlab.cli.field_help import write_sections

        write_sections(formatter)


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
    """Train ResNet classifiers and ResNet-FPN detectors, and compare their normalizations.

    An experiment is a TOML file; any field of it can be overridden on the command line, e.g.
    fpnlab train configs/bccd.toml --data.root ~/bccd --train.batch_size 8
    """
    from fpnlab.cli.allocator import keep_freed_memory
    from fpnlab.compiler import silence_false_alarms

    keep_freed_memory()  # Before JAX starts its threads.
    silence_false_alarms()


@configured("train")
@config_argument
@out_option
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
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
) -> None:
    """Train one network as CONFIG says, measure it, and write a report.

    Run it again to go on after an interruption; a finished run is not run again.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise click.UsageError("--coordinator, --processes and --process go together; give all")
    if not (distributed or any(given)):
        _train(ctx, config, out)
        return
    from fpnlab.run.distributed import joined

    with joined(coordinator, processes, process) as first:
        _train(ctx, config, out, first=first)


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

    trial = single(_experiment(ctx, config), config.stem)
    experiment = trial.experiment
    folder = out or pathlib.Path("runs") / config.stem
    try:
        data_mesh(experiment.train.batch_size)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    dataset = _data(experiment)
    if not first:
        with Stop() as stop:
            follow_trial(trial, dataset, stop=stop)
        return
    with Stop() as stop, ProgressDisplay() as display:
        display.start([trial])
        display.begin(trial)
        report = lambda record: display.record(trial, record)
        result = run_trial(trial, dataset, folder, stop=stop, report=report)
        display.end(trial, result)
    _print_metrics(result.metrics)
    click.echo(f"report: {write_run_report(folder)}")
    if result.status == "diverged":
        click.echo(f"diverged: {result.error}; try a lower train.learning_rate", err=True)
        sys.exit(4)


@configured("study")
@config_argument
@out_option
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
    workers: int,
    ray: str | None,
    slurm: str | None,
    pack: int,
    dry_run: bool,
) -> None:
    """Run every trial of CONFIG's [study], and write a report.

    Run it again to go on after an interruption: finished trials are not run again.
    """
    from fpnlab.study.executors.local import SHARED_ACCELERATOR, machine_share

    folder = out or pathlib.Path("runs") / config.stem
    if workers > 1:
        # Before JAX starts. A dry run measures what a worker will have.
        own = machine_share(workers) if dry_run else SHARED_ACCELERATOR
        os.environ.update(own | os.environ)
    # Ray forks, which a process must not do once JAX has threads.
    executor = None if dry_run else _executor(workers, ray, slurm, folder)
    from fpnlab.config.trials import counted

    experiment = _experiment(ctx, config)
    dataset = _data(counted(experiment))
    if dry_run:
        from fpnlab.study.dry_run import describe, estimate

        click.echo(describe(estimate(experiment, dataset), workers))
        return
    from rich.console import Console

    from fpnlab.cli.progress import ProgressDisplay
    from fpnlab.report import summary_table, verdict_text, write_report
    from fpnlab.run.interrupts import Stop
    from fpnlab.study.runner import run_study

    with Stop() as stop, ProgressDisplay() as display:
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
    console = Console()
    console.print(summary_table(summary))
    if summary.verdicts:
        console.print(verdict_text(summary))
    for finding in summary.findings:
        console.print(f"- {finding}", markup=False, highlight=False)
    click.echo(f"report: {write_report(folder)}")


@configured("plan")
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
    from fpnlab.cli.study_plan import describe_plan
    from fpnlab.config.trials import counted
    from fpnlab.records.study_records import read_summary
    from fpnlab.study.dry_run import estimate
    from fpnlab.study.power_plan import plan_seeds, pooled_deviation

    experiment = _experiment(ctx, config)
    if spread is None:
        assert pilot is not None
        spread, freedom = pooled_deviation(read_summary(pilot / "summary.json"))
        source = f"estimated from {pilot} with {freedom} degrees of freedom"
    else:
        source = "as given"
    dataset = _data(counted(experiment))
    click.echo("measuring a few steps of each kind of trial ...", err=True)
    found = estimate(experiment, dataset)
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
    click.echo(
        describe_plan(
            planned, metric=study.metric, seeds=len(study.seeds), power=power, source=source
        )
    )


@main.command("worker", hidden=True)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@click.option("--owner", help="Name of this worker, one that no other has.  [default: made up]")
@click.option("--parent", type=int, help="Process without which it stops.  [default: none]")
@click.option("--pack", type=click.IntRange(1), default=1, show_default=True, help="As of a study.")
def worker(folder: pathlib.Path, owner: str | None, parent: int | None, pack: int) -> None:
    """Run trials of the study that was begun in FOLDER until none is left.

    Any number may do so at once, on any machine that sees the folder.
    """
    from fpnlab.run.interrupts import Stop
    from fpnlab.study.context import StudyListener, open_study
    from fpnlab.study.worker import owner_name, work

    _use_compilation_cache()
    name = owner or owner_name()
    click.echo(f"{name}: process {os.getpid()}")
    orphaned = lambda: parent is not None and os.getppid() != parent
    with Stop() as stop:
        work(open_study(folder, pack), name, stop=stop, listener=StudyListener(), orphaned=orphaned)


@main.command("evaluate")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def evaluate(run: pathlib.Path) -> None:
    """Measure the last checkpoint of the run folder RUN again, and print its metrics.

    Batch norm is measured three ways: by running, population and batch statistics.
    """
    from fpnlab.run.folder import RunFolder
    from fpnlab.run.measure import evaluate_run

    _use_compilation_cache()
    experiment = RunFolder(run).stored().experiment
    _print_metrics(evaluate_run(run, _data(experiment)))


@main.command("predict")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, path_type=pathlib.Path)
)
@click.option(
    "--score",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Lowest score of a box that is written.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default="predictions",
    show_default=True,
    help="Folder for predictions.json and a drawn picture of each image.",
)
def predict_command(
    run: pathlib.Path, images: tuple[pathlib.Path, ...], score: float, out: pathlib.Path
) -> None:
    """Predict IMAGES, files or folders of them, with the last checkpoint of the run folder RUN.

    Boxes are in pixels of the image, upright as its EXIF orientation says.
    """
    from fpnlab.cli.prediction_files import predict_files

    _use_compilation_cache()
    failed = predict_files(run, images, out, score=score)
    if failed:
        sys.exit(3)


@main.command("report")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def report(folder: pathlib.Path) -> None:
    """Write the report of a study or run FOLDER anew, finished or not."""
    import gc

    from fpnlab.report import write_report, write_run_report

    # The records of thousands of trials are millions of values, which hold no cycles.
    collecting = gc.isenabled()
    gc.disable()
    write = write_report if (folder / "study.json").exists() else write_run_report
    try:
        click.echo(f"report: {write(folder)}")
    except (OSError, ValueError) as error:
        click.echo(f"fpnlab report: {error}", err=True)
        sys.exit(5)
    finally:
        if collecting:
            gc.enable()


@main.command("verify")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def verify(folder: pathlib.Path) -> None:
    """Check the run or study FOLDER against its own checksums, and print every problem."""
    from fpnlab.study.verify import verify as check

    found = check(folder)
    for problem in found.problems:
        click.echo(str(problem))
    click.echo(str(found))
    if found.problems:
        sys.exit(5)


@main.command("doctor")
def doctor_command() -> None:
    """Check this installation: versions, devices, flags, memory, cache, disk, right numbers.

    Exits with 5 where XLA computes one of the known cases wrong.
    """
    from rich.console import Console

    from fpnlab.cli.allocator import keep_freed_memory
    from fpnlab.cli.doctor import examine

    _use_compilation_cache()
    table, right = examine(freed_memory_kept=keep_freed_memory())
    Console().print(table)
    if not right:
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
    from fpnlab.cli.preview import draw_preview

    experiment = _experiment(ctx, config)
    dataset = _data(experiment)
    picture = draw_preview(experiment, dataset, run, split=split, count=count, score=score)
    picture.save(out)
    click.echo(str(out))


@configured("config")
@config_argument
@click.pass_context
def config_command(ctx: click.Context, config: pathlib.Path) -> None:
    """Print CONFIG resolved: every field of the experiment, defaults included, as JSON."""
    from fpnlab.config.validate import resolved

    click.echo(json.dumps(resolved(_experiment(ctx, config)), indent=2))


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


def _experiment(ctx: click.Context, path: pathlib.Path) -> "Experiment":
    from fpnlab.config.load import load_config

    _use_compilation_cache()
    return load_config(path, list(_overrides(ctx.args)))


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
    """Returns the experiment's data; prints problems, and exits with 3 where loading fails."""
    from fpnlab.data.load_data import load

    try:
        dataset = load(experiment.data)
    except (OSError, ValueError) as error:
        click.echo(
            f"fpnlab: {error}\nThe folder is the field data.root: --data.root PATH", err=True
        )
        sys.exit(3)
    for line in problem_lines(dataset.problems):
        click.echo(f"data: {line}", err=True)
    return dataset


def problem_lines(problems: "Sequence[Problem]", most: int = 20) -> list[str]:
    """Returns a line for each kind of problem, the rarest first: equal ones are counted.

    Args:
      problems: what was left out or changed while loading.
      most: lines at most; a last one says how many kinds were left out.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        # Numbers (coordinates, sizes) differ where the kind of problem is the same.
        kinds.setdefault(re.sub(r"\d+(\.\d+)?", "#", problem.what), []).append(problem)
    ordered = sorted(kinds.values(), key=len)
    lines = [
        str(alike[0]) + (f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else "")
        for alike in ordered
    ]
    rest = len(lines) - most
    return lines if rest <= 0 else [*lines[:most], f"{rest} more kinds of problems"]


def _print_metrics(metrics: "Mapping[str, Mapping[str, float | None]]") -> None:
    names = list(metrics["running"])
    width = max(map(len, names))
    click.echo(f"{'points':{width}}" + "".join(f"{source:>10}" for source in metrics))
    for name in names:
        row = [metrics[source][name] for source in metrics]
        cells = "".join(f"{'-' if v is None or v != v else f'{100 * v:.1f}':>10}" for v in row)
        click.echo(f"{name:{width}}{cells}")
