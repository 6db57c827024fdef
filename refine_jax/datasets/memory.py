"""How much memory there is: the machine's, or less, where a container may have less."""

import os
import pathlib
from collections.abc import Iterator


def of_machine() -> int:
    """Returns how many bytes of memory this process may have: all of the machine's, or its control group's limit."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(pathlib.Path("/"))])


def _limits(root: pathlib.Path) -> Iterator[int]:
    """The limits of the control groups that this process is in; a group without one may say a very large number.

    Args:
        root: Of the file system.
    """
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except (OSError, ValueError):  # no Linux
        return
    for line in lines:
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys" / "fs" / "cgroup" / ("memory" if controllers else "")
        group = mount / path.lstrip("/")
        # In a container the path may be the host's, of which only the mount itself is to be seen there.
        for folder in (group, *group.parents):
            yield from _limit(folder / ("memory.limit_in_bytes" if controllers else "memory.max"))
            if folder == mount:
                break


def _limit(file: pathlib.Path) -> Iterator[int]:
    """The number in a file, if there is one: version 2 says "max" where there is no limit."""
    try:
        yield int(file.read_text())
    except (OSError, ValueError):
        return
