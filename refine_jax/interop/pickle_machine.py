"""The stack on which a pickle's opcodes work, every operation charged to a budget before it takes memory."""

import numbers
import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from refine_jax.interop.untrusted import (
    MAX_NUMBER_KEYS,
    MAX_OBJECT_BYTES,
    MAX_PICKLE_BYTES,
    TorchFileError,
    shown,
)

# Bytes charged for what CPython 3.11 to 3.14 takes at most, the growth of tables and the last check included.
OPERATION_BYTES = 48
CONTAINER_BYTES = 320
_ITEM = 128
_MAX_LINE = 1 << 16
_MAX_INTEGER = 255
_MEMO_GAP = 1_000


class Budget:
    """Memory that the objects of a file may take, tensors' data aside, and how many keys may be numbers.

    Args:
        size: In bytes.
    """

    def __init__(self, size: int = MAX_OBJECT_BYTES):
        self.size = self._left = size
        self._number_keys = 0

    def spend(self, size: int) -> None:
        """Takes `size` bytes.

        Raises:
            TorchFileError: They are not left.
        """
        self._left -= size
        if self._left < 0:
            raise TorchFileError(f"its pickle holds objects of more than {self.size} bytes besides the tensors' data")

    def count_number_key(self) -> None:
        """Counts a number that becomes a key of a dict or an element of a set.

        Raises:
            TorchFileError: There are too many.
        """
        self._number_keys += 1
        if self._number_keys > MAX_NUMBER_KEYS:
            raise TorchFileError(f"its pickle has more than {MAX_NUMBER_KEYS} numbers as keys or elements of sets")


class Builder:
    """What may stand where a pickle calls something.

    Args:
        name: Its name in the file.
        build: Takes the arguments to the value; raises TorchFileError for arguments that are not understood.
        has_keys: Whether it makes keys, and takes the budget, too, as its first argument.
    """

    def __init__(self, name: str, build: Callable[..., Any], *, has_keys: bool = False):
        self.name, self._build, self._has_keys = name, build, has_keys

    def __call__(self, arguments: Any, budget: Budget) -> Any:
        if not isinstance(arguments, tuple):
            raise TorchFileError(f"calls {self.name} with {shown(arguments)}")
        try:
            return self._build(budget, *arguments) if self._has_keys else self._build(*arguments)
        except TypeError as error:
            raise TorchFileError(f"calls {self.name} with arguments that it has not") from error


class Machine:
    """What the opcodes of one pickle work on: a stack of values, a memo, and the stream.

    Args:
        stream: Stands at the pickle.
        end: Where the part of the stream that may be read ends.
        find: Takes module and name to what they mean: a `Builder` or a value. It raises TorchFileError for every name
            that is not known, and gets the bytes that follow as a hint for its message.
        persistent: Takes a persistent id to a value.
        set_state: Takes what was built, its state and the budget; changes the first in place.
        budget: What the objects may take, shared by the pickles of a file.
    """

    def __init__(
        self,
        stream: BinaryIO,
        end: int,
        find: Callable[[str, str, Callable[[], bytes]], Any],
        persistent: Callable[[Any], Any],
        set_state: Callable[[Any, Any, Budget], None],
        budget: Budget,
    ):
        self._stream, self._find, self._persistent, self._set_state = stream, find, persistent, set_state
        self._left = min(end - stream.tell(), MAX_PICKLE_BYTES)
        self.budget = budget
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def take(self, size: int) -> bytes:
        """Returns the next bytes."""
        self._check_left(size)
        data = self._stream.read(size)
        if len(data) != size:
            raise TorchFileError("changed while it was read")
        self._left -= size
        return data

    def number(self, code: str) -> Any:
        """Returns the next number, in struct's code."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        """Returns the text up to the end of the line."""
        data = self._stream.readline(min(self._left, _MAX_LINE))
        self._left -= len(data)
        if not data.endswith(b"\n"):
            raise TorchFileError("its pickle has a line without an end")
        return self._text(data[:-1])

    def push(self, value: Any, size: int = 0) -> None:
        """Puts a value on the stack, which takes `size` bytes."""
        self.budget.spend(size)
        self._stack.append(value)

    def pop(self) -> Any:
        """Returns the value on top of the stack and takes it off."""
        if not self._stack:
            raise TorchFileError("its pickle takes more values than it gave")
        return self._stack.pop()

    def top(self) -> Any:
        """Returns the value on top of the stack."""
        value = self.pop()
        self._stack.append(value)
        return value

    def mark(self) -> None:
        """Marks the place on the stack where the items of a container begin."""
        self._marks.append(len(self._stack))

    def items(self) -> list[Any]:
        """Returns the values above the last mark and takes them off."""
        if not self._marks:
            raise TorchFileError("its pickle closes a container that it did not open")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def push_tuple(self, items: list[Any]) -> None:
        """Puts a tuple on the stack."""
        self.push(tuple(items), CONTAINER_BYTES + 8 * len(items))

    def push_string(self, size: int) -> None:
        """Puts the next `size` bytes on the stack, as text."""
        self._stack.append(self._text(self._data(size)))

    def push_python2_string(self, size: int) -> None:
        """Puts the next `size` bytes on the stack: text where they are UTF-8, else bytes."""
        data = self._data(size)
        try:
            self._stack.append(self._text(data))
        except TorchFileError:
            self._stack.append(data)

    def push_bytes(self, size: int) -> None:
        """Puts the next `size` bytes on the stack."""
        self._stack.append(self._data(size))

    def _check_left(self, size: int) -> None:
        if size > self._left:
            raise TorchFileError("ends in the middle of its pickle: copy or download it again")

    def _data(self, size: int) -> bytes:
        self._check_left(size)
        self.budget.spend(size + 80)
        return self.take(size)

    def _text(self, data: bytes) -> str:
        # Python keeps four bytes for each character where one is beyond the basic plane.
        most = 80 + (1 if data.isascii() else 4) * len(data)
        self.budget.spend(most)
        text = _decode(data)
        self.budget.spend(sys.getsizeof(text) - most)
        return text

    def push_integer(self, size: int) -> None:
        """Puts the next `size` bytes on the stack, as a number."""
        if size > _MAX_INTEGER:
            raise TorchFileError(f"its pickle holds a whole number of {size} bytes")
        self.push(pickle.decode_long(self.take(size)), 2 * size)

    def number_line(self, convert: Callable[[str], Any] = int) -> Any:
        """Returns the number on the next line."""
        text = self.line()
        self.budget.spend(_MAX_INTEGER)
        try:
            if len(text) > _MAX_INTEGER:
                raise ValueError
            return convert(text)
        except ValueError:
            raise TorchFileError(f"its pickle has {shown(text)} where a number belongs") from None

    def named(self, module: Any, name: Any) -> Any:
        """Returns what a name means."""
        if not isinstance(name, str) or not isinstance(module, str):
            raise TorchFileError(f"its pickle has {shown(module)} and {shown(name)} where a name belongs")
        return self._find(module, name, lambda: self._stream.read(min(self._left, 1 << 20)))

    def call(self) -> None:
        """Puts the value on the stack that a builder makes of its arguments."""
        arguments, builder = self.pop(), self.pop()
        if not isinstance(builder, Builder):
            raise TorchFileError(f"its pickle calls {shown(builder)}, which is nothing to be called")
        self.budget.spend(CONTAINER_BYTES + _size(arguments))
        self._stack.append(builder(arguments, self.budget))

    def build(self) -> None:
        """Gives the value below the top its state."""
        state = self.pop()
        self._set_state(self.top(), state, self.budget)

    def push_persistent(self, value: Any) -> None:
        """Puts what a persistent id stands for on the stack."""
        self.push(self._persistent(value), CONTAINER_BYTES)

    def remember(self, index: int) -> None:
        """Keeps the value on top of the stack as number `index`."""
        # Programs count up; numbers at will could all have one hash, and the memo would take forever.
        if not 0 <= index <= len(self._memo) + _MEMO_GAP:
            raise TorchFileError(f"its pickle keeps a value out of turn, as number {shown(index)}")
        self.budget.spend(_ITEM)
        self._memo[index] = self.top()

    def memoize(self) -> None:
        """Keeps the value on top of the stack as the next number."""
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        """Puts the value of number `index` on the stack."""
        if index not in self._memo:
            raise TorchFileError("its pickle recalls a value that it did not keep")
        self._stack.append(self._memo[index])

    def extend(self, items: list[Any]) -> None:
        """Appends to the list below."""
        self.budget.spend(16 * len(items))
        self._below(list).extend(items)

    def add(self, items: list[Any]) -> None:
        """Adds to the set below."""
        self.budget.spend(_ITEM * len(items))
        self._below(set).update([key(item, self.budget) for item in items])

    def fill(self, items: list[Any]) -> None:
        """Fills the dict below with keys and values in turn."""
        if len(items) % 2:
            raise TorchFileError("its pickle has a key without a value")
        self.budget.spend(_ITEM * len(items) // 2)
        target = self._below(dict)
        for index in range(0, len(items), 2):
            target[key(items[index], self.budget)] = items[index + 1]

    def push_dict(self) -> None:
        """Puts a dict of the items on the stack."""
        items = self.items()
        self.push({}, CONTAINER_BYTES)
        self.fill(items)

    def discard(self) -> None:
        """Takes a value off, or the mark where it is on top."""
        if self._marks and self._marks[-1] >= len(self._stack):
            self._marks.pop()
        else:
            self.pop()

    def _below(self, kind: type) -> Any:
        target = self.top()
        if type(target) is not kind:
            raise TorchFileError(f"its pickle fills {shown(target)} as if it were a {kind.__name__}")
        return target


def key(value: Any, budget: Budget) -> Any:
    """Returns a key of a dict or an element of a set.

    Tuples are none: their hash is computed by recursion, and many tuples of one hash are easily made.

    Raises:
        TorchFileError: It is no string, no bytes and no number, or there are too many numbers.
    """
    if value is None or isinstance(value, str | bytes | bool):
        return value
    # Beyond this, whole numbers are easily made that all have one hash.
    if isinstance(value, float) or (isinstance(value, numbers.Integral) and int(value).bit_length() < 61):
        budget.count_number_key()
        return value
    raise TorchFileError(f"has {shown(value)} as a key or an element of a set")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise TorchFileError("its pickle has text that is not UTF-8") from None


def _size(arguments: Any) -> int:
    """Returns the bytes that a value made of these arguments takes at most, arrays aside."""
    if not isinstance(arguments, tuple):
        return 0
    return sum(
        _ITEM * len(value)
        if isinstance(value, list | tuple | dict)
        else 80 + sys.getsizeof(value)
        if isinstance(value, str | bytes)
        else 64
        for value in arguments
    )
