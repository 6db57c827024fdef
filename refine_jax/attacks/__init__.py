"""Backdoor attacks: triggers and poisoned training sets."""

from refine_jax.attacks.registry import build, describe, names, options, rebuild

__all__ = ["build", "describe", "names", "options", "rebuild"]
