"""Whether a GPU comes to the same bits each time: an option of XLA's, read when JAX opens its devices."""

import os

import jax

from refine_jax.errors import SettingError

_OPTION = "--xla_gpu_deterministic_ops=true"


def ask() -> None:
    """Gives the option to XLA; to be called before anything is computed."""
    if not _is_asked():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_OPTION}".strip()


def check(field: str, value: bool) -> None:
    """Refuses a setting that came too late for this process.

    Args:
        field: Its name.
        value: Whether the same bits are wanted. A CPU comes to them in any case.

    Raises:
        SettingError: They are wanted of a GPU that was opened without the option.
    """
    if value and jax.default_backend() == "gpu" and not _is_asked():
        raise SettingError(field, value, f"with XLA_FLAGS={_OPTION} in the environment, before JAX opens the GPU")


def _is_asked() -> bool:
    return _OPTION in os.environ.get("XLA_FLAGS", "").split()
