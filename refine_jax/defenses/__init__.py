"""Defenses: what stands between images and a classifier that may carry a backdoor."""

from refine_jax.defenses import mapping as mapping
from refine_jax.defenses import refine as refine
from refine_jax.defenses import shrinkpad as shrinkpad
from refine_jax.defenses.registry import names as names
