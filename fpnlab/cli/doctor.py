"""The table of `fpnlab doctor`: the installation, the machine, and checks of XLA."""

import contextlib
import os
import pathlib
import shutil

import jax
import rich.table
import rich.text

from fpnlab import compiler
from fpnlab.records.plain_text import visible
from fpnlab.run.environment import environment


def examine(*, freed_memory_kept: bool) -> tuple[rich.table.Table, bool]:
    """Returns a table of what results depend on here, and whether all known cases are right.

    Args:
      freed_memory_kept: whether the allocator was set (`allocator.keep_freed_memory`).
    """
    found = environment()
    table = rich.table.Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    table.add_row("versions", f"Python {found['python']}, {versions}")
    table.add_row("devices", f"{found['devices']} x {found['device']} ({found['platform']})")
    table.add_row("cores", str(found["cores"]))
    flags = ", ".join(f"{name}={value}" for name, value in found["flags"].items())
    table.add_row("flags", _plain(flags or "none"))
    allocator = "keeps freed memory" if freed_memory_kept else "the system's default"
    table.add_row("allocator", _plain(f"{allocator}{_preloaded()}"))
    cache = jax.config.values["jax_compilation_cache_dir"]
    size = f"{cache} ({_size(pathlib.Path(cache))})" if cache else "none"
    table.add_row("cache", _plain(size))
    table.add_row("free disk", f"{shutil.disk_usage('.').free / 1e9:.1f} GB here")
    for check in compiler.checks():
        verdict = (
            "[green]right[/]"
            if check.right
            else f"[red]WRONG[/]: {check.found:.6g}, expected {check.expected:.6g}"
        )
        table.add_row("known case", f"{check.name}: {verdict}")
    right = all(check.right for check in compiler.checks())
    table.add_row(
        "verdict",
        "[green]all right[/]" if right else f"[red]Do not trust it. {compiler.remedy()}[/]",
    )
    return table, right


def _plain(text: str) -> rich.text.Text:
    """Returns text of the environment verbatim: brackets in a path are no markup."""
    return rich.text.Text(visible(text))


def _preloaded() -> str:
    """Returns the allocator that was preloaded, if any, in words."""
    preload = os.environ.get("LD_PRELOAD", "")
    return f"; LD_PRELOAD={preload}" if preload else ""


def _size(folder: pathlib.Path) -> str:
    """Returns how many files a folder holds, and how large they are; others may remove some."""
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += [path.stat().st_size] if path.is_file() else []
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.0f} MB"
