"""Interpreter of the pickles in weight files: it imports nothing and calls nothing.

A pickle is a program for a machine with a stack. Python's own machine imports any name and calls it
with any arguments, so that loading a pickle is running a program of whoever wrote it. This one
knows the instructions that plain containers and tensors need. A name stays a `Name`, a call makes
one of the values in ``torch_objects`` or is an error, and no value is ever walked, compared or
hashed deeper than one level: nested containers cost no more than the bytes that describe them.
"""

import io
import pickletools
from collections.abc import Iterator

from fpnlab.errors import WeightsError
from fpnlab.weights.torch_objects import (
    DAMAGED,
    NAMES,
    SAVE,
    Name,
    Storage,
    Unused,
    build,
    put,
    shown,
    storage_of,
)

MOST_PICKLE_BYTES = 2**24
"""Largest pickle in bytes; one entry of a state_dict takes about 100."""
MOST_INSTRUCTIONS = 250_000
"""Largest number of instructions of all pickles of a file; a tensor takes about 30."""
MOST_BITS = 128
"""Largest integer in bits."""


class RestrictedUnpickler:
    """Reads the pickles in a stream one after the other, like ``pickle.Unpickler``."""

    def __init__(self, content: bytes, place: str) -> None:
        """Starts at the beginning of ``content``.

        Args:
          content: The pickles, and what may follow them.
          place: Name of this part of the file for messages.
        """
        self.stream = io.BytesIO(content)
        """The content; its position is after the last pickle."""
        self.storages: dict[str, Storage] = {}
        """The storages of all tensors so far, by key."""
        self._place = place
        self._left = MOST_INSTRUCTIONS

    def load(self) -> object:
        """Returns the value of the next pickle.

        Raises:
          WeightsError: The pickle is damaged or too large, or holds other than plain values,
            containers of them, and tensors.
        """
        where = self.stream.tell()
        machine = _Machine(self.storages)
        try:
            for code, argument, position in self._instructions():
                where = position
                if code == "STOP":
                    return machine.pop()
                machine.step(code, argument)
        except WeightsError as error:
            raise WeightsError(f"{self._place}, byte {where}: {error}") from None
        except (ValueError, IndexError, KeyError) as error:
            # A ValueError of the tokenizer, or too few values on the stack or in the memo.
            reason = shown(str(error)) if isinstance(error, ValueError) else "a value is missing"
            raise WeightsError(
                f"{self._place}, after byte {where}: no valid pickle of at most "
                f"{MOST_PICKLE_BYTES:,} bytes ({reason}); {DAMAGED}"
            ) from None
        raise AssertionError("a pickle without an end is an error of the tokenizer")

    def _instructions(self) -> Iterator[tuple[str, object, int]]:
        for instruction, argument, position in pickletools.genops(self.stream):
            self._left -= 1
            if self._left < 0:
                raise WeightsError(
                    f"it has more than {MOST_INSTRUCTIONS:,} values and instructions; {SAVE}"
                )
            yield instruction.name, argument, position or 0


class _Machine:
    """The stack of one pickle. After a MARK values go onto a new stack, until it is collected."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: dict[object, object] = {}

    def pop(self) -> object:
        return self.stack.pop()

    def collect(self) -> list[object]:
        """Returns the values since the last MARK, and goes on with the stack before it."""
        values, self.stack = self.stack, self.outer.pop()
        return values

    def step(self, code: str, argument: object) -> None:
        """Follows one instruction.

        The order of the cases is that of their number in a state_dict.
        """
        match code:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "BININT1" | "BININT" | "BININT2" | "LONG1" | "LONG4":
                self.stack.append(_integer(argument))
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "TUPLE":
                values = self.collect()
                self.stack.append(tuple(values))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code[-1])
                values = [self.pop() for _ in range(count)]
                self.stack.append(tuple(reversed(values)))
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINFLOAT":
                self.stack.append(argument)
            case "REDUCE":
                arguments = self.pop()
                self.stack.append(build(self.pop(), arguments))
            case "BINPERSID":
                storage = storage_of(self.pop())
                known = self.storages.setdefault(storage.key, storage)
                if (known.dtype, known.count) != (storage.dtype, storage.count):
                    raise WeightsError(f"storage {shown(storage.key)} has two sizes; {DAMAGED}")
                self.stack.append(storage)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "PROTO" | "FRAME":
                pass
            case _:
                self._rarer(code, argument)

    def _rarer(self, code: str, argument: object) -> None:
        """Follows an instruction that most tensors do without."""
        match code:
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "GLOBAL":
                self.stack.append(_name(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise WeightsError(f"a name is no text; {DAMAGED}")
                self.stack.append(_name(f"{module}.{name}"))
            case "SETITEM" | "SETITEMS":
                values = self.collect() if code == "SETITEMS" else [self.pop(), self.pop()][::-1]
                for key, value in zip(values[::2], values[1::2], strict=True):
                    put(self.stack[-1], key, value)
            case "APPEND" | "APPENDS":
                values = self.collect() if code == "APPENDS" else [self.pop()]
                match self.stack[-1]:
                    case list() as top:
                        top.extend(values)
                    case top:
                        raise WeightsError(f"items of a {type(top).__name__} are added; {DAMAGED}")
            case "BUILD":  # Such as `_metadata` of a state_dict, which holds no weights.
                self.pop()
                if not isinstance(self.stack[-1], dict | Unused):
                    kind = type(self.stack[-1]).__name__
                    raise WeightsError(f"attributes of a {kind} are set; {SAVE}")
            case "NEWOBJ":
                arguments = self.pop()
                self.stack.append(build(self.pop(), arguments))
            case "EMPTY_SET":
                self.stack.append(Unused("set"))
            case "ADDITEMS":
                self.collect()
            case "FROZENSET":
                self.collect()
                self.stack.append(Unused("frozenset"))
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                self.stack.append(Unused("bytes"))
            case "BINSTRING" | "SHORT_BINSTRING":  # Text of Python 2
                self.stack.append(argument)
            case _:
                of = f" of {shown(argument)}" if isinstance(argument, str) else ""
                raise WeightsError(f"the instruction {code}{of} is not among those read; {SAVE}")


def _name(name: str) -> Name:
    """Returns a name that a weight file may contain.

    Raises:
      WeightsError: It may not contain this one.
    """
    if name not in NAMES:
        raise WeightsError(f"it refers to {shown(name)}, which is not part of weights; {SAVE}")
    return Name(name)


def _integer(value: object) -> int:
    """Returns an integer.

    Raises:
      WeightsError: It has too many bits.
    """
    assert isinstance(value, int)
    if value.bit_length() > MOST_BITS:
        raise WeightsError(f"an integer has more than {MOST_BITS} bits; {DAMAGED}")
    return value
