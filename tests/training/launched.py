"""launch.py with a network that compiles at once, 'tiny'; run by test_processes.py with the flags of launch.py."""

import functools
import runpy

import flax.linen as nn

from refine_jax.networks import registry
from refine_jax.networks.norm import BatchNorm


class Tiny(nn.Module):
    """A linear classifier of the normalized image at a quarter of its size."""

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = BatchNorm(None, self.axis_name)(nn.avg_pool(images, (4, 4), strides=(4, 4)), train)
        return nn.Dense(self.num_classes)(x.reshape(len(images), -1))


if __name__ == "__main__":
    registry.NETWORKS["tiny"] = functools.partial(Tiny)
    runpy.run_path("launch.py", run_name="__main__")
