"""jax.jit with the compiler options that a backend needs to be fast, and where compiled programs are kept."""

import functools
import logging
import pathlib
import platform
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Sends convolutions to a library, which computes most of them faster than XLA's own code for CPUs (see
# docs/performance.md). Given per jit because XLA_FLAGS aborts on unknown names.
_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}}


def compile_training(function: Callable, **jit_options: Any) -> Callable:
    """Returns `jax.jit(function, **jit_options)` with the options of `compiler_options`."""
    # In float64 the library is the slow one.
    options = None if jnp.result_type(float) == jnp.float64 else compiler_options(jax.default_backend())
    return jax.jit(function, compiler_options=options, **jit_options)


def compile_in_haste(function: Callable) -> Callable:
    """Returns `jax.jit(function)` for what runs once, so that a CPU's compiler need not make it fast."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


@functools.cache
def compiler_options(backend: str) -> dict[str, str] | None:
    """Returns the compiler options for a backend; None where it needs none or does not know them.

    Args:
        backend: 'cpu', 'gpu' or 'tpu'.
    """
    options = _OPTIONS.get(backend)
    if options is None:
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(jnp.zeros(())).compile()
    except Exception as error:  # which one for an unknown option differs between versions
        logging.getLogger(__name__).info("compiler options %s are not known here: %s", options, error)
        return None
    return options


def keep_compiled(folder: pathlib.Path) -> None:
    """Has JAX keep what it compiles, so that a second start of the same run compiles nothing.

    Where the user has named a folder (JAX_COMPILATION_CACHE_DIR) or turned the cache off
    (JAX_ENABLE_COMPILATION_CACHE), that stays as it is.

    Args:
        folder: In the user's cache; made when something is written.
    """
    given: Any = jax.config
    if given.jax_compilation_cache_dir or not given.jax_enable_compilation_cache:
        return
    # A program for one CPU may not run on another, and machines may share the user's folder.
    jax.config.update("jax_compilation_cache_dir", str(folder / _processor()))
    # Small programs too: there are many of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """A name for the kind of CPU, of what the system says that it can do."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    abilities = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return f"{platform.machine()}-{zlib.crc32(' '.join(sorted(abilities)).encode()):08x}"
