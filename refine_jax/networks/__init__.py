"""Classifiers, and the U-Net that stands in front of them."""

from refine_jax.networks import unet as unet
from refine_jax.networks.registry import build as build
from refine_jax.networks.registry import names as names
from refine_jax.networks.registry import options as options
