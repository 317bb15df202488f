"""Words and options that the commands share."""

import itertools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from fpnlab.errors import DataError, RunFolderError
from fpnlab.records.plain_text import visible

if TYPE_CHECKING:
    from fpnlab.config.experiment import Experiment
    from fpnlab.data.dataset import Dataset, Problem


def say(text: str, *, err: bool = False) -> None:
    """Prints text, with characters that would steer the terminal as escapes.

    Where nobody reads on, as after ``| head -1``, the command goes on without output: it may have
    trials to run, or a report to write, and its exit code counts.

    Args:
      text: A message, in which names and errors may hold anything.
      err: If true, prints to standard error.
    """
    try:
        click.echo(visible(text, keep="\n\t"), err=err)
    except BrokenPipeError:
        drop_output(sys.stderr if err else sys.stdout)


def drop_output(stream: IO[str]) -> None:
    """Sends all further output of a stream nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        except click.ClickException as error:
            error.message = visible(error.message, keep="\n\t")  # type: ignore[read-only]
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            say(f"fpnlab {ctx.invoked_subcommand}: {error}", err=True)
            sys.exit(code)


class Configured(Command):
    """A command that takes a config, and overrides of its fields as further options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the words; ``--help FIELD`` prints the help on a field."""
        for word, after in itertools.pairwise(args):
            path = after.removeprefix("--").replace("-", "_")
            if word in ctx.help_option_names and re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", path):
                from fpnlab.cli.field_help import describe_field

                say(describe_field(path))
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


def configured(name: str, short_help: str) -> Callable[[Callable[..., None]], Configured]:
    """Returns a decorator that makes a function a command over a config with overrides."""
    passing = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.command(name, cls=Configured, context_settings=passing, short_help=short_help)


config_argument = click.argument("config", type=click.Path(dir_okay=False, path_type=pathlib.Path))
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Folder for results.  [default: runs/<name of the config>]",
)


root_option = click.option(
    "--data.root",
    "root",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Folder of the data, if they were moved.  [default: as in the config]",
)
existing_option = click.option(
    "--allow-existing",
    is_flag=True,
    help="Write into a folder that holds other files.  [default: an error]",
)
STOPPING = "stopping after this step, then saving; press Ctrl-C again to end at once, unsaved"
"""Notice on the first signal."""
OWN_FILES = {".lock", "config.json", "env.json", "data.json", "study.json", "ledger.sqlite"}
"""Files of which a used folder of a run or a study has at least one."""


def check_out(folder: pathlib.Path, *, allow_existing: bool) -> None:
    """Raises RunFolderError if a folder for results holds files but no run or study."""
    if allow_existing or not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir())
    if names and not OWN_FILES & set(names):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise RunFolderError(
            f"{folder}: holds other files ({shown}); give a new or empty folder with --out, or "
            "add --allow-existing"
        )


def given_experiment(ctx: click.Context, path: pathlib.Path) -> "Experiment":
    """Returns the experiment of a config with the overrides of the command line."""
    from fpnlab.config.load import load_config

    use_compilation_cache()
    return load_config(path, list(overrides(ctx.args)))


def overrides(words: list[str]) -> Iterator[tuple[str, str]]:
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


def use_compilation_cache() -> None:
    """Keeps compiled programs in ``$FPNLAB_CACHE`` or ``~/.cache/fpnlab``."""
    import jax

    home = os.environ.get("FPNLAB_CACHE") or pathlib.Path.home() / ".cache" / "fpnlab"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def loaded_data(experiment: "Experiment") -> "Dataset":
    """Returns the experiment's data; prints problems, and exits with 3 where loading fails.

    Raises:
      DataError: A library that reads the data is not installed.
    """
    from fpnlab.data.load_data import load

    try:
        dataset = load(experiment.data)
    except ImportError as error:
        raise DataError(str(error)) from None
    except (OSError, ValueError) as error:
        say(f"fpnlab: {error}\nThe folder is the field data.root: --data.root PATH", err=True)
        sys.exit(3)
    for line in problem_lines(dataset.problems):
        say(f"data: {line}", err=True)
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


def print_metrics(metrics: "Mapping[str, Mapping[str, float | None]]") -> None:
    """Prints metrics in points, a row a metric and a column a source of statistics."""
    names = list(metrics["running"])
    width = max(map(len, names))
    say(f"{'points':{width}}" + "".join(f"{source:>10}" for source in metrics))
    for name in names:
        row = [metrics[source][name] for source in metrics]
        cells = "".join(f"{'-' if v is None or v != v else f'{100 * v:.1f}':>10}" for v in row)
        say(f"{name:{width}}{cells}")
