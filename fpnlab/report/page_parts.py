"""Parts of a page that fail one by one: a damaged part is left out, and the page says so."""

import base64
import io
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from markupsafe import Markup

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import replace_file, writing
from fpnlab.report.series import WIDTH
from fpnlab.report.study_folder import one_line

T = TypeVar("T")
LONGEST_SLUG = 60
"""Characters of a figure's file name at most."""


class Figure(NamedTuple):
    """An image on the page."""

    source: str
    """The PNG as a data URI."""
    alt: str
    """Alternative text."""
    caption: str
    """Caption."""
    wide: bool = False
    """True for a figure that needs the width of the page."""


class PageParts:
    """Makes the parts of a page, and collects those that could not be made.

    Any exception ends only its part: at the end of days of training, no damage that nobody thought
    of may cost the page.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Creates ``figures/``.

        Args:
          folder: The folder of the page.
        """
        self.left_out: list[str] = []
        """The parts that the page lacks, each with the reason."""
        self._folder: pathlib.Path | None = folder / "figures"
        self._names: set[str] = set()
        try:
            if self._folder.is_symlink():
                raise RunFolderError(f"{self._folder}: a link, which is not followed; remove it")
            with writing(self._folder):
                self._folder.mkdir(exist_ok=True)
        except RunFolderError as error:
            self._without_files(error)

    def make(self, part: str, call: Callable[[], T], otherwise: T) -> T:
        """Returns what ``call`` returns, or ``otherwise`` if it raises."""
        try:
            return call()
        except Exception as error:
            self.left_out.append(f"{part}: {one_line(error)}")
            return otherwise

    def section(self, part: str, caller: Callable[[], Markup]) -> Markup:
        """Returns the body of a ``call`` block of a template, or nothing if it raises."""
        return self.make(part, caller, Markup())

    def figure(self, name: str, draw: Callable[[io.BytesIO], None], caption: str) -> list[Figure]:
        """Returns a figure after writing it to ``figures/``; nothing if it cannot be drawn.

        Args:
          name: Its name, from which the name of its file is made.
          draw: Writes the figure as a PNG.
          caption: Its caption, and its text for those who cannot see it.
        """

        def drawn() -> list[Figure]:
            memory = io.BytesIO()
            draw(memory)
            data = memory.getvalue()
            self._write(name, data)
            source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            inches = int.from_bytes(data[16:20]) / 180  # The width is the first field of a PNG.
            return [Figure(source, caption, caption, wide=inches > 1.2 * WIDTH)]

        return self.make(f"figure {name}", drawn, [])

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is None:
            return
        try:
            replace_file(self._folder / f"{self._slug(name)}.png", data)
        except RunFolderError as error:
            self._without_files(error)

    def _without_files(self, error: RunFolderError) -> None:
        """Takes note that figures are on the page alone."""
        self._folder = None
        self.left_out.append(f"figures/, so that figures are on the page alone: {one_line(error)}")

    def _slug(self, name: str) -> str:
        """Returns a file name of letters, digits and underscores that no other figure has."""
        slug = re.sub(r"[^A-Za-z0-9]+", "_", name)[:LONGEST_SLUG] or "_"
        number, free = 1, slug
        while free.lower() in self._names:
            number += 1
            free = f"{slug}_{number}"
        self._names.add(free.lower())
        return free
