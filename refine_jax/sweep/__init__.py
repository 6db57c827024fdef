"""Sweeps: one configuration in many variations, each an ordinary run, and one table of all."""

from refine_jax.sweep.plan import Sweep as Sweep
from refine_jax.sweep.plan import base as base
