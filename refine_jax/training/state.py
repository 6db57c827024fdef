"""What changes from step to step of a training."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from refine_jax.training.compilation import compile_in_haste


@flax.struct.dataclass
class TrainState:
    """Everything that a training needs, beside its data, to go on.

    Attributes:
        step: Steps done. int32 scalar
        params: Trained parameters.
        batch_stats: Running statistics of the BatchNorms; {} where there are none.
        opt_state: The optimizer's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """As a linen module takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def updated(self, optimizer: optax.GradientTransformation, gradients: Any, batch_stats: Any) -> "TrainState":
        """Returns the state after one step along `gradients`."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return TrainState(self.step + 1, params, batch_stats, opt_state)


def create_train_state(
    network: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array, image_size: tuple[int, int]
) -> TrainState:
    """Returns the state of a training that has not begun.

    Args:
        network: Takes images [N, H, W, 3].
        optimizer: Of its parameters.
        key: For the initial weights.
        image_size: (H, W).

    Returns:
        Fresh weights, statistics and optimizer state, at step 0.
    """
    # Jitted as one program: run operation by operation, a ResNet takes many times as long to set up.
    init = compile_in_haste(network.init)
    variables = init(key, jnp.zeros((1, *image_size, 3)))
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def count_parameters(params: Any) -> int:
    """Returns how many numbers `params` holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
