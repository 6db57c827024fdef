"""Weights of other frameworks."""

from refine_jax.interop import torch_weights as torch_weights
