"""Pickles as torch.save writes them, read by an interpreter that can make nothing but plain values.

Python's own unpicklers are not used. The C one takes memory before a class is looked up: for a memo index as
large as the file says, for a string or frame as long as the file says. Both call what a subclass's find_class lets
through with whatever arguments the file gives, hash nested tuples by recursion in C, and count nothing. Here every
operation is charged to a budget before it takes memory, and a name means only what a table says that it means.

References:
    The opcodes are described in CPython's Lib/pickletools.py.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from refine_jax.interop.pickle_machine import CONTAINER_BYTES, OPERATION_BYTES, Budget, Machine
from refine_jax.interop.torch_objects import find, set_state
from refine_jax.interop.untrusted import TorchFileError, shown


def load(stream: BinaryIO, end: int, persistent: Callable[[Any], Any], budget: Budget) -> Any:
    """Returns the value of the pickle at which a stream stands, and leaves the stream behind it.

    Args:
        stream: A file, or bytes as one.
        end: Where the part of the stream that may be read ends.
        persistent: Takes a persistent id to a value.
        budget: What the objects may take, shared by the pickles of a file.

    Raises:
        TorchFileError: The pickle is damaged, beyond a limit, or names or does what is not allowed.
    """
    machine = Machine(stream, end, find, persistent, set_state, budget)
    while (code := machine.take(1)) != pickle.STOP:
        budget.spend(OPERATION_BYTES)
        operation = _OPERATIONS.get(code)
        if operation is None:
            known = pickletools.code2op.get(code.decode("latin-1"))  # type: ignore[attr-defined]
            raise TorchFileError(
                f"its pickle has {f'the opcode {known.name}' if known else f'the byte {shown(code)}'}, "
                "which torch.save does not write"
            )
        operation(machine)
    return machine.pop()


def _check_protocol(protocol: int) -> None:
    if protocol > 5:
        raise TorchFileError(f"has a pickle of the protocol {protocol}, and those up to 5 are read")


def _refuse_instance(machine: Machine) -> None:
    machine.named(machine.line(), machine.line())
    raise TorchFileError("its pickle has the opcode INST, which torch.save does not write")


def _truth_or_integer(text: str) -> bool | int:
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text)


_OPERATIONS: dict[bytes, Callable[[Machine], object]] = {
    pickle.PROTO: lambda m: _check_protocol(m.number("<B")),
    pickle.FRAME: lambda m: m.take(8),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.LONG1: lambda m: m.push_integer(m.number("<B")),
    pickle.LONG4: lambda m: m.push_integer(m.number("<I")),
    pickle.INT: lambda m: m.push(m.number_line(_truth_or_integer)),
    pickle.LONG: lambda m: m.push(m.number_line(lambda text: int(text.removesuffix("L")))),
    pickle.FLOAT: lambda m: m.push(m.number_line(float)),
    pickle.STRING: lambda m: m.push(m.line()),
    pickle.UNICODE: lambda m: m.push(m.line()),
    pickle.BINUNICODE: lambda m: m.push_string(m.number("<I")),
    pickle.SHORT_BINUNICODE: lambda m: m.push_string(m.number("<B")),
    pickle.BINUNICODE8: lambda m: m.push_string(m.number("<Q")),
    pickle.BINSTRING: lambda m: m.push_python2_string(m.number("<I")),
    pickle.SHORT_BINSTRING: lambda m: m.push_python2_string(m.number("<B")),
    pickle.BINBYTES: lambda m: m.push_bytes(m.number("<I")),
    pickle.SHORT_BINBYTES: lambda m: m.push_bytes(m.number("<B")),
    pickle.BINBYTES8: lambda m: m.push_bytes(m.number("<Q")),
    pickle.MARK: Machine.mark,
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push_tuple(m.items()),
    pickle.TUPLE1: lambda m: m.push_tuple([m.pop()]),
    pickle.TUPLE2: lambda m: m.push_tuple([m.pop(), m.pop()][::-1]),
    pickle.TUPLE3: lambda m: m.push_tuple([m.pop(), m.pop(), m.pop()][::-1]),
    pickle.EMPTY_LIST: lambda m: m.push([], CONTAINER_BYTES),
    pickle.LIST: lambda m: m.push(m.items(), CONTAINER_BYTES),
    pickle.APPEND: lambda m: m.extend([m.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.items()),
    pickle.EMPTY_DICT: lambda m: m.push({}, CONTAINER_BYTES),
    pickle.DICT: Machine.push_dict,
    pickle.SETITEM: lambda m: m.fill([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.fill(m.items()),
    pickle.EMPTY_SET: lambda m: m.push(set(), CONTAINER_BYTES),
    pickle.ADDITEMS: lambda m: m.add(m.items()),
    pickle.POP: Machine.discard,
    pickle.POP_MARK: lambda m: m.items(),
    pickle.DUP: lambda m: m.push(m.top()),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.PUT: lambda m: m.remember(m.number_line()),
    pickle.MEMOIZE: Machine.memoize,
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GET: lambda m: m.recall(m.number_line()),
    pickle.GLOBAL: lambda m: m.push(m.named(m.line(), m.line())),
    pickle.STACK_GLOBAL: lambda m: m.push(m.named(*[m.pop(), m.pop()][::-1])),
    pickle.INST: _refuse_instance,
    pickle.REDUCE: Machine.call,
    pickle.NEWOBJ: Machine.call,
    pickle.BUILD: Machine.build,
    pickle.PERSID: lambda m: m.push_persistent(m.line()),
    pickle.BINPERSID: lambda m: m.push_persistent(m.pop()),
}
