"""Pickles as torch.save writes them, read by an interpreter that can make nothing but plain values.

Python's own unpicklers are not used. The C one takes memory before a class is looked up: for a memo index as
large as the file says, for a string or frame as long as the file says. Both call what a subclass's find_class lets
through with whatever arguments the file gives, hash nested tuples by recursion in C, and count nothing. Here every
operation is charged to a budget before it takes memory, and a name means only what a table says that it means.

References:
    The opcodes are described in CPython's Lib/pickletools.py.
"""

import numbers
import pickle
import pickletools
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from refine_jax.interop.untrusted import MAX_OBJECT_BYTES, MAX_PICKLE_BYTES, TorchFileError, shown

# Bytes charged for what CPython 3.11 to 3.14 takes at most, the growth of tables and the last check included.
_OPERATION = 48
_CONTAINER = 320
_ITEM = 128
_MAX_LINE = 1 << 16
_MAX_INTEGER = 255


class Budget:
    """Memory that the objects of a file may take.

    Args:
        size: In bytes.
    """

    def __init__(self, size: int = MAX_OBJECT_BYTES):
        self.size = self._left = size

    def spend(self, size: int) -> None:
        """Takes `size` bytes.

        Raises:
            TorchFileError: They are not left.
        """
        self._left -= size
        if self._left < 0:
            raise TorchFileError(f"its pickle holds objects of more than {self.size} bytes besides the tensors' data")


class Builder:
    """What may stand where a pickle calls something.

    Args:
        name: Its name in the file.
        build: Takes the arguments to the value; raises TorchFileError for arguments that are not understood.
    """

    def __init__(self, name: str, build: Callable[..., Any]):
        self.name, self._build = name, build

    def __call__(self, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TorchFileError(f"calls {self.name} with {shown(arguments)}")
        try:
            return self._build(*arguments)
        except TypeError as error:
            raise TorchFileError(f"calls {self.name} with arguments that it has not") from error


class Unpickler:
    """Reads one pickle of a stream, and leaves the stream behind it.

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
        self._budget = budget
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Returns the value of the pickle.

        Raises:
            TorchFileError: The pickle is damaged, beyond a limit, or names or does what is not allowed.
        """
        spend, operations = self._budget.spend, _OPERATIONS
        while (code := self.take(1)) != pickle.STOP:
            spend(_OPERATION)
            operation = operations.get(code)
            if operation is None:
                known = pickletools.code2op.get(code.decode("latin-1"))  # type: ignore[attr-defined]
                raise TorchFileError(
                    f"its pickle has {f'the opcode {known.name}' if known else f'the byte {shown(code)}'}, "
                    "which torch.save does not write"
                )
            operation(self)
        return self.pop()

    def take(self, size: int) -> bytes:
        """Returns the next bytes."""
        if size > self._left:
            raise TorchFileError("ends in the middle of its pickle: copy or download it again")
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
        self._budget.spend(size)
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
        self.push(tuple(items), _CONTAINER + 8 * len(items))

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

    def _data(self, size: int) -> bytes:
        self._budget.spend(size + 80)
        return self.take(size)

    def _text(self, data: bytes) -> str:
        # Python keeps four bytes for each character where one is beyond the basic plane.
        most = 80 + (1 if data.isascii() else 4) * len(data)
        self._budget.spend(most)
        text = _decode(data)
        self._budget.spend(sys.getsizeof(text) - most)
        return text

    def push_integer(self, size: int) -> None:
        """Puts the next `size` bytes on the stack, as a number."""
        if size > _MAX_INTEGER:
            raise TorchFileError(f"its pickle holds a whole number of {size} bytes")
        self.push(pickle.decode_long(self.take(size)), size)

    def push_number(self, convert: Callable[[str], Any]) -> None:
        """Puts the number on the next line on the stack."""
        text = self.line()
        try:
            if len(text) > _MAX_INTEGER:
                raise ValueError
            self.push(convert(text), _MAX_INTEGER)
        except ValueError:
            raise TorchFileError(f"its pickle has {shown(text)} where a number belongs") from None

    def push_named(self, module: Any, name: Any) -> None:
        """Puts what a name means on the stack."""
        self.push(self._find(module, name, lambda: self._stream.read(min(self._left, 1 << 20))))

    def push_named_by_stack(self) -> None:
        """Puts what the name on top of the stack means there."""
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TorchFileError(f"its pickle has {shown(module)} and {shown(name)} where a name belongs")
        self.push_named(module, name)

    def refuse_named(self) -> None:
        """Refuses INST, by what it names if that is not known."""
        self.push_named(self.line(), self.line())
        raise TorchFileError("its pickle has the opcode INST, which torch.save does not write")

    def call(self) -> None:
        """Puts the value on the stack that a builder makes of its arguments."""
        arguments, builder = self.pop(), self.pop()
        if not isinstance(builder, Builder):
            raise TorchFileError(f"its pickle calls {shown(builder)}, which is nothing to be called")
        self._budget.spend(_CONTAINER + _size(arguments))
        self._stack.append(builder(arguments))

    def set_state(self) -> None:
        """Gives the value below the top its state."""
        state = self.pop()
        self._set_state(self.top(), state, self._budget)

    def push_persistent(self, value: Any) -> None:
        """Puts what a persistent id stands for on the stack."""
        self.push(self._persistent(value), _CONTAINER)

    def remember(self, index: int) -> None:
        """Keeps the value on top of the stack as number `index`."""
        self._budget.spend(_ITEM)
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
        self._budget.spend(16 * len(items))
        self._below(list).extend(items)

    def add(self, items: list[Any]) -> None:
        """Adds to the set below."""
        self._budget.spend(_ITEM * len(items))
        self._below(set).update([key(item) for item in items])

    def fill(self, items: list[Any]) -> None:
        """Fills the dict below with keys and values in turn."""
        if len(items) % 2:
            raise TorchFileError("its pickle has a key without a value")
        self._budget.spend(_ITEM * len(items) // 2)
        target = self._below(dict)
        for index in range(0, len(items), 2):
            target[key(items[index])] = items[index + 1]

    def push_dict(self) -> None:
        """Puts a dict of the items on the stack."""
        items = self.items()
        self.push({}, _CONTAINER)
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


def key(value: Any) -> Any:
    """Returns a key of a dict or an element of a set.

    Tuples are none: their hash is computed by recursion, and many tuples of one hash are easily made.

    Raises:
        TorchFileError: It is no string, no bytes and no number.
    """
    if value is None or isinstance(value, str | bytes | bool | float):
        return value
    # Beyond this, many whole numbers have the same hash, and a dict of them takes forever.
    if isinstance(value, numbers.Integral) and int(value).bit_length() < 61:
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
        else 2 * len(value)
        if isinstance(value, str | bytes)
        else 64
        for value in arguments
    )


def _truth_or_integer(text: str) -> bool | int:
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text)


_OPERATIONS: dict[bytes, Callable[[Unpickler], None]] = {
    pickle.PROTO: lambda u: None if u.take(1)[0] <= 5 else _refuse_protocol(),
    pickle.FRAME: lambda u: None if u.take(8) else None,
    pickle.NONE: lambda u: u.push(None),
    pickle.NEWTRUE: lambda u: u.push(True),
    pickle.NEWFALSE: lambda u: u.push(False),
    pickle.BININT: lambda u: u.push(u.number("<i")),
    pickle.BININT1: lambda u: u.push(u.number("<B")),
    pickle.BININT2: lambda u: u.push(u.number("<H")),
    pickle.BINFLOAT: lambda u: u.push(u.number(">d")),
    pickle.LONG1: lambda u: u.push_integer(u.number("<B")),
    pickle.LONG4: lambda u: u.push_integer(u.number("<I")),
    pickle.INT: lambda u: u.push_number(_truth_or_integer),
    pickle.LONG: lambda u: u.push_number(lambda text: int(text.removesuffix("L"))),
    pickle.FLOAT: lambda u: u.push_number(float),
    pickle.STRING: lambda u: u.push(u.line()),
    pickle.UNICODE: lambda u: u.push(u.line()),
    pickle.BINUNICODE: lambda u: u.push_string(u.number("<I")),
    pickle.SHORT_BINUNICODE: lambda u: u.push_string(u.number("<B")),
    pickle.BINUNICODE8: lambda u: u.push_string(u.number("<Q")),
    pickle.BINSTRING: lambda u: u.push_python2_string(u.number("<I")),
    pickle.SHORT_BINSTRING: lambda u: u.push_python2_string(u.number("<B")),
    pickle.BINBYTES: lambda u: u.push_bytes(u.number("<I")),
    pickle.SHORT_BINBYTES: lambda u: u.push_bytes(u.number("<B")),
    pickle.BINBYTES8: lambda u: u.push_bytes(u.number("<Q")),
    pickle.MARK: Unpickler.mark,
    pickle.EMPTY_TUPLE: lambda u: u.push(()),
    pickle.TUPLE: lambda u: u.push_tuple(u.items()),
    pickle.TUPLE1: lambda u: u.push_tuple([u.pop()]),
    pickle.TUPLE2: lambda u: u.push_tuple([u.pop(), u.pop()][::-1]),
    pickle.TUPLE3: lambda u: u.push_tuple([u.pop(), u.pop(), u.pop()][::-1]),
    pickle.EMPTY_LIST: lambda u: u.push([], _CONTAINER),
    pickle.LIST: lambda u: u.push(u.items(), _CONTAINER),
    pickle.APPEND: lambda u: u.extend([u.pop()]),
    pickle.APPENDS: lambda u: u.extend(u.items()),
    pickle.EMPTY_DICT: lambda u: u.push({}, _CONTAINER),
    pickle.DICT: Unpickler.push_dict,
    pickle.SETITEM: lambda u: u.fill([u.pop(), u.pop()][::-1]),
    pickle.SETITEMS: lambda u: u.fill(u.items()),
    pickle.EMPTY_SET: lambda u: u.push(set(), _CONTAINER),
    pickle.ADDITEMS: lambda u: u.add(u.items()),
    pickle.POP: Unpickler.discard,
    pickle.POP_MARK: lambda u: None if u.items() else None,
    pickle.DUP: lambda u: u.push(u.top()),
    pickle.BINPUT: lambda u: u.remember(u.number("<B")),
    pickle.LONG_BINPUT: lambda u: u.remember(u.number("<I")),
    pickle.PUT: lambda u: (u.push_number(int), u.remember(u.pop()))[1],
    pickle.MEMOIZE: Unpickler.memoize,
    pickle.BINGET: lambda u: u.recall(u.number("<B")),
    pickle.LONG_BINGET: lambda u: u.recall(u.number("<I")),
    pickle.GET: lambda u: (u.push_number(int), u.recall(u.pop()))[1],
    pickle.GLOBAL: lambda u: u.push_named(u.line(), u.line()),
    pickle.STACK_GLOBAL: Unpickler.push_named_by_stack,
    pickle.INST: Unpickler.refuse_named,
    pickle.REDUCE: Unpickler.call,
    pickle.NEWOBJ: Unpickler.call,
    pickle.BUILD: Unpickler.set_state,
    pickle.PERSID: lambda u: u.push_persistent(u.line()),
    pickle.BINPERSID: lambda u: u.push_persistent(u.pop()),
}
