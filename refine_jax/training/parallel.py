"""A training step on one device or on several; everything that knows how many there are.

On several devices the step is pmapped: each takes its part of the batch, the modules and losses inside are told the
name of the mapped axis, and what comes out is what one device would have made of the whole batch: batch normalization
takes its statistics, and the contrastive loss its pairs, from all of it, and augmentation draws for all of it. State
and data are on every device, whole.

A batch that cannot be divided, as the last one of a victim's epochs may be, is computed whole by every device: that
takes longer, but it is exact, and none of its images weighs more than another.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from refine_jax.errors import SettingError
from refine_jax.training.compilation import compile_training

AXIS = "devices"

Batch = Mapping[str, Any]
# (state, data, batch) -> (state, metrics).
StepFunction = Callable[[Any, Any, Batch], tuple[Any, dict[str, jax.Array]]]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a training is run, which is no part of what it comes to.

    Attributes:
        devices: How many; None: all there are.
        feed: Where the images are, one of `stream.PLACES`; None: by their size.
        workers: Processes that decode streamed images; 0: threads do.
        remat: Whether networks compute anew for a gradient what else would be kept for it.
    """

    devices: int | None = 1
    feed: str | None = None
    workers: int = 0
    remat: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Execution":
        """Returns what the section 'run' of a configuration asks for."""
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})

    def chosen(self) -> tuple[jax.Device, ...]:
        """Returns the devices.

        Raises:
            SettingError: There are not as many.
        """
        there = jax.devices()
        count = len(there) if self.devices is None else self.devices
        if not 1 <= count <= len(there):
            raise SettingError("run.devices", count, f"1 to {len(there)}, the devices that JAX sees here")
        return tuple(there[:count])

    def check_batch(self, field: str, batch_size: int) -> None:
        """Refuses a batch that the devices cannot share.

        Args:
            field: Name of its setting.
            batch_size: Images.

        Raises:
            SettingError: It is no multiple of the number of devices.
        """
        count = len(self.chosen())
        if batch_size % count:
            raise SettingError(field, batch_size, f"a multiple of {count}, the number of devices (run.devices)")


ONE_DEVICE = Execution()


class Step:
    """A compiled training step; the state that it is given is overwritten.

    Args:
        make: (axis_name) -> the function (state, data, batch) -> (state, metrics). The axis is None on one device;
            otherwise the function sees its part of the batch, and gives the same state and metrics on every device.
        execution: Where it runs.
    """

    def __init__(self, make: Callable[[str | None], StepFunction], execution: Execution = ONE_DEVICE):
        self._devices = execution.chosen()
        whole = make(None)
        if len(self._devices) == 1:
            self._whole = compile_training(whole, donate_argnums=0)
        else:
            self._whole = self._map(whole)
            self._parts = self._map(make(AXIS))

    def _map(self, function: StepFunction) -> StepFunction:
        # Every device gives the same state and metrics: one of them is taken, nothing is stacked.
        return jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, None, 0),  # type: ignore[arg-type]
            out_axes=None,
            devices=self._devices,
            donate_argnums=0,
        )

    def place(self, tree: T) -> T:
        """Returns a tree of arrays on the devices, whole on each."""
        if len(self._devices) == 1:
            return jax.device_put(tree, self._devices[0])
        return jax.device_put(tree, NamedSharding(Mesh(np.array(self._devices), (AXIS,)), PartitionSpec()))

    def __call__(self, state: Any, data: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        """Trains by one batch.

        Args:
            state: From `place`, or from the step before.
            data: From `place`.
            batch: Arrays on the host whose rows belong to the images of the batch. [B, ...]
        """
        count = len(self._devices)
        if count == 1:
            return self._whole(state, data, batch)
        if len(next(iter(batch.values()))) % count:
            return self._whole(state, data, {name: _repeat(rows, count) for name, rows in batch.items()})
        return self._parts(state, data, {name: _split(rows, count) for name, rows in batch.items()})


def _repeat(rows: Any, count: int) -> np.ndarray:
    rows = np.asarray(rows)
    return np.broadcast_to(rows, (count, *rows.shape))


def _split(rows: Any, count: int) -> np.ndarray:
    rows = np.asarray(rows)
    return rows.reshape(count, -1, *rows.shape[1:])
