"""Where a figure came from: versions, device and commit."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ("refine-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def describe() -> dict[str, Any]:
    """Returns versions, device and commit, as results.json keeps them."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Model of the CPU, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} ({len(models)} cores)" if models else platform.machine()


def _commit() -> str | None:
    """The checkout's commit, with '+changes' where files differ from it; None outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # it may be installed inside somebody else's checkout
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")
