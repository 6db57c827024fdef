"""Compiles a training step and prints how often the compiler was asked and had to work; run by test_compilation.py."""

import collections
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from refine_jax.training.compilation import compile_training, keep_compiled

EVENTS = ("compile_requests_use_cache", "cache_misses", "cache_hits")


def main():
    """Prints a JSON object: event to number, and the folder in use."""
    counts = collections.Counter()
    jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rpartition("/")[2]]))
    keep_compiled(pathlib.Path(sys.argv[1]))

    def step(state, images):
        kernel_gradient = jax.grad(lambda kernel: jnp.square(convolve(images, kernel)).sum())(state)
        return state - 0.1 * kernel_gradient

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    key = jax.random.key(0)
    step = compile_training(step, donate_argnums=0)
    state = step(jax.random.normal(key, (3, 3, 3, 4)), jnp.ones((2, 8, 8, 3)))
    folder = jax.config.jax_compilation_cache_dir
    json.dump({**{name: counts[name] for name in EVENTS}, "folder": folder, "sum": float(state.sum())}, sys.stdout)


if __name__ == "__main__":
    main()
