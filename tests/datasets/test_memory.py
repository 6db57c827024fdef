"""How much memory a process may have."""

import os

import pytest

from refine_jax.datasets import memory


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        (
            "0::/user/a\n",
            {"user/a/memory.max": "max\n", "user/memory.max": "700\n", "memory.max": "900\n"},
            [700, 900],
        ),
        ("0::/\n", {"memory.max": "500\n"}, [500]),
        # A container that sees the host's names, and of the folders its own alone.
        (
            "5:cpu,cpuacct:/docker/b\n4:memory:/docker/b\n0::/docker/b\n",
            {"memory/memory.limit_in_bytes": "300\n", "memory.max": "200\n", "docker/b/cpu.max": "1"},
            [300, 200],
        ),
        ("0::/\n", {"memory.max": "no number"}, []),
        ("", {"memory.max": "500\n"}, []),
    ],
)
def test_limits_of_control_groups_of_both_versions_are_found(tmp_path, groups, files, limits):
    write(tmp_path, "proc/self/cgroup", groups)
    for path, text in files.items():
        write(tmp_path, f"sys/fs/cgroup/{path}", text)
    assert list(memory._limits(tmp_path)) == limits


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path):
    assert list(memory._limits(tmp_path)) == []


@pytest.mark.parametrize(("limits", "wanted"), [([], 400), ([300, 350], 300), ([2**63 - 4096], 400)])
def test_the_least_counts(monkeypatch, limits, wanted):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 100}.__getitem__)
    monkeypatch.setattr(memory, "_limits", lambda root: iter(limits))
    assert memory.of_machine() == wanted
