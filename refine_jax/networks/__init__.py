"""Classifiers, the U-Net that stands in front of them, and the autoencoder that restores images."""

from refine_jax.networks import mae as mae
from refine_jax.networks import unet as unet
from refine_jax.networks.registry import build as build
from refine_jax.networks.registry import check_width as check_width
from refine_jax.networks.registry import names as names
from refine_jax.networks.registry import options as options
