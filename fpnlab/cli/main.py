"""The command ``fpnlab``."""

import json
import os
import pathlib
import sys

import click

from fpnlab.cli.command_line import (
    Laboratory,
    config_argument,
    configured,
    given_experiment,
    loaded_data,
    print_metrics,
    root_option,
    say,
    use_compilation_cache,
)
from fpnlab.cli.plan_command import plan
from fpnlab.cli.study_command import study
from fpnlab.cli.train_command import train

EXIT_CODES = """\b
Exit codes: 0 done; 2 a config or command line that cannot be right; 3 data that cannot be
read; 4 the run diverged, or every trial of the study diverged or failed; 5 a folder or checkpoint
that cannot be used, or a backend that computes wrong numbers; 75 interrupted and saved: run the
same command again to go on."""


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

    use_compilation_cache()
    name = owner or owner_name()
    say(f"{name}: process {os.getpid()}")
    orphaned = lambda: parent is not None and os.getppid() != parent
    with Stop() as stop:
        work(open_study(folder, pack), name, stop=stop, listener=StudyListener(), orphaned=orphaned)


@main.command("evaluate", short_help="Measure the last checkpoint of a run again.")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@root_option
def evaluate(run: pathlib.Path, root: pathlib.Path | None) -> None:
    """Measure the last checkpoint of the run folder RUN again, and print its metrics.

    Batch norm is measured three ways: by running, precise and batch statistics.
    """
    from fpnlab.config.trials import varied
    from fpnlab.records.data_files import named
    from fpnlab.run.enter_folder import data_changes
    from fpnlab.run.folder import RunFolder
    from fpnlab.run.measure import evaluate_run

    use_compilation_cache()
    experiment = RunFolder(run).stored().experiment
    if root is not None:
        experiment = varied(experiment, {"data.root": str(root)})
    dataset = loaded_data(experiment)
    if changed := data_changes(run, dataset):
        say(
            f"data: changed since the run: {named(changed)}; the metrics below are on the data as "
            "they are now",
            err=True,
        )
    print_metrics(evaluate_run(run, dataset))


@main.command("predict", short_help="Predict image files with a trained run.")
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

    use_compilation_cache()
    failed = predict_files(run, images, out, score=score)
    if failed:
        sys.exit(3)


@main.command("report", short_help="Write the report of a study or run anew.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def report(folder: pathlib.Path) -> None:
    """Write the report of a study or run FOLDER anew, finished or not."""
    import gc

    from fpnlab.report import write_report, write_run_report

    # The records of thousands of trials are millions of values, which hold no cycles.
    collecting = gc.isenabled()
    gc.disable()
    # A study whose description is missing is still no run.
    parts = ("study.json", "ledger.sqlite", "trials")
    is_study = any(os.path.lexists(folder / name) for name in parts)
    write = write_report if is_study else write_run_report
    try:
        page = write(folder)
    except (OSError, ValueError) as error:
        say(f"fpnlab report: {error}", err=True)
        sys.exit(5)
    finally:
        if collecting:
            gc.enable()
    say(f"report: {page}")


@main.command("verify", short_help="Check a run or study for changed or damaged files.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@root_option
def verify(folder: pathlib.Path, root: pathlib.Path | None) -> None:
    """Check the run or study FOLDER against its manifests, and its numbers against each other.

    Prints every problem with its remedy, and what cannot be checked.
    """
    from fpnlab.study.verify import verify as check

    found = check(folder, root)
    for problem in found.problems:
        say(str(problem))
    say(str(found))
    for what in found.unchecked:
        say(f"not checked: {what}")
    if found.problems:
        sys.exit(5)


@main.command("doctor", short_help="Check this installation.")
def doctor_command() -> None:
    """Check this installation: versions, devices, flags, memory, cache, disk, right numbers.

    Exits with 5 where XLA computes one of the known cases wrong.
    """
    from rich.console import Console

    from fpnlab.cli.allocator import keep_freed_memory
    from fpnlab.cli.doctor import examine

    use_compilation_cache()
    table, right = examine(freed_memory_kept=keep_freed_memory())
    Console().print(table)
    if not right:
        sys.exit(5)


@configured("show", "Draw samples of the data and predictions to a PNG.")
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

    experiment = given_experiment(ctx, config)
    dataset = loaded_data(experiment)
    picture = draw_preview(experiment, dataset, run, split=split, count=count, score=score)
    picture.save(out)
    say(str(out))


@configured("config", "Print every field of a config as JSON.")
@config_argument
@click.pass_context
def config_command(ctx: click.Context, config: pathlib.Path) -> None:
    """Print CONFIG resolved: every field of the experiment, defaults included, as JSON."""
    from fpnlab.config.validate import resolved

    say(json.dumps(resolved(given_experiment(ctx, config)), indent=2))


for command in (train, study, plan, show, config_command):
    main.add_command(command)
