"""What may leave a file from a stranger: plain values, whose nesting and size a reader of them can bear."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from refine_jax.interop.untrusted import (
    FREE_REPETITION_BYTES,
    MAX_NESTING,
    MAX_REPETITION,
    MAX_VALUES,
    TorchFileError,
    shown,
)

_PLAIN = (type(None), bool, int, float, complex, str, bytes, set, np.generic, np.dtype)
_CONTAINERS = (dict, list, tuple)


class _Open:
    """A container that is being walked through.

    Attributes:
        height: Containers inside one another, this one included.
        values: Values in it, in the containers in it, and so on; what stands in two places counts twice.
        size: Bytes of the arrays among them.
    """

    def __init__(self, container: Any):
        self.container = container
        self.children: Iterator[Any] = iter(container.values() if isinstance(container, dict) else container)
        self.height, self.values, self.size = 1, 0, 0

    def add(self, height: int, values: int, size: int) -> None:
        self.height = max(self.height, 1 + height)
        self.values += 1 + values
        self.size += size


def check(value: Any, file_size: int) -> None:
    """Checks what was read from a file of `file_size` bytes.

    A few bytes can make lists of lists that take years to walk through, a list that is its own element, or a
    tensor that repeats one number more often than fits into memory; a container is walked through once.

    Args:
        value: Nested dicts, lists and tuples.
        file_size: In bytes.

    Raises:
        TorchFileError: A value is not plain, or a limit is passed.
    """
    most_bytes = MAX_REPETITION * file_size + FREE_REPETITION_BYTES
    done: dict[int, tuple[int, int, int]] = {}
    opened = {id(value)}
    root = _Open([value])
    path = [root]
    while path:
        walked = path[-1]
        child = _next_container(walked, done)
        if child is None:
            path.pop()
            if walked.height > MAX_NESTING:
                raise TorchFileError(f"nests containers more than {MAX_NESTING} deep")
            if walked.values > MAX_VALUES:
                raise TorchFileError(f"holds more than {MAX_VALUES} values, shared ones counted at each place (a memo bomb)")
            if walked.size > most_bytes:
                raise TorchFileError(
                    f"holds tensors of {walked.size} bytes written out, and its {file_size} bytes allow {most_bytes}"
                )
            done[id(walked.container)] = (walked.height, walked.values, walked.size)
            opened.discard(id(walked.container))
            if path:
                path[-1].add(*done[id(walked.container)])
        elif len(path) > MAX_NESTING:
            raise TorchFileError(f"nests containers more than {MAX_NESTING} deep, or one in itself")
        else:
            path.append(_Open(child))
