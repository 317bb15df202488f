"""Removal of the tracebacks that Orbax prints beside the error that it raises."""

import functools
import logging
import sys


@functools.cache
def silence_repeated_errors() -> None:
    """Drops the tracebacks that a failed save or restore prints besides raising the error.

    Orbax saves and restores many arrays at a time and raises the first error. For the others it
    logs tracebacks in its threads, asyncio logs those that were never retrieved when they are
    garbage, and TensorStore prints "Event loop is closed" for each array that it reads or writes
    later. Since all of these may come after the error was raised, they are dropped for good.
    """
    logging.getLogger("absl").addFilter(lambda record: not _is_of_thread(record))
    logging.getLogger("asyncio").addFilter(lambda record: not _is_never_retrieved(record))
    before = sys.unraisablehook
    sys.unraisablehook = lambda raised: None if _is_of_closed_loop(raised) else before(raised)


def _is_of_thread(record: logging.LogRecord) -> bool:
    return "orbax" in record.pathname and record.exc_info is not None


def _is_never_retrieved(record: logging.LogRecord) -> bool:
    """Returns whether the record is of an error in reading or writing an array."""
    text = record.getMessage()
    return "never retrieved" in text and any(word in text for word in ("orbax", "OCDBT", "zarr"))


def _is_of_closed_loop(raised: "sys.UnraisableHookArgs") -> bool:
    # The function is in the outermost frame only where native code has called it.
    called = raised.exc_traceback.tb_frame.f_code.co_name if raised.exc_traceback else ""
    return raised.exc_type is RuntimeError and called == "call_soon_threadsafe"
