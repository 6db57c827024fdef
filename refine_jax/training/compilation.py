"""jax.jit with the compiler options that a backend needs to be fast, where its version knows them."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# XLA's CPU backend computes the weight gradients of 3 x 3 convolutions some 20 times too slowly; this option
# sends them to a library (see docs/performance.md). Given per jit because XLA_FLAGS aborts on unknown names.
_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}}


def compile_training(function: Callable, **jit_options: Any) -> Callable:
    """Returns `jax.jit(function, **jit_options)` with the options of `compiler_options`."""
    # In float64 the library is the slow one.
    options = None if jnp.result_type(float) == jnp.float64 else compiler_options(jax.default_backend())
    return jax.jit(function, compiler_options=options, **jit_options)


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
