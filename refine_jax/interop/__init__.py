"""Weights of other frameworks."""

from refine_jax.interop import mae_weights as mae_weights
from refine_jax.interop import torch_file as torch_file
from refine_jax.interop import torch_weights as torch_weights
