"""A training step on one device or on several; everything that knows how many there are.

On several devices the step is pmapped: each takes its part of the batch, the modules and losses inside are told the
name of the mapped axis, and what comes out is what one device would have made of the whole batch: batch normalization
takes its statistics, and the contrastive loss its pairs, from all of it, and augmentation draws for all of it. State
and data are on every device, whole.

A batch that cannot be divided, as the last one of a victim's epochs may be, is computed whole by every device: that
takes longer, but it is exact, and none of its images weighs more than another.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from refine_jax.errors import SettingError
from refine_jax.training.compilation import compile_training

AXIS = "devices"
PRECISIONS = ("float32", "bfloat16")

Batch = Mapping[str, Any]
# (state, data, batch) -> (state, metrics).
StepFunction = Callable[[Any, Any, Batch], tuple[Any, dict[str, jax.Array]]]
T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a training is run. Of all this only the precision shows in what it comes to, beyond rounding.

    Attributes:
        devices: How many; None: all there are.
        steps_per_call: Steps in a call of a compiled program; None: what suits the device.
        feed: Where the images are, one of `stream.PLACES`; None: by their size.
        workers: Processes that decode streamed images; 0: threads do.
        remat: Whether networks compute anew for a gradient what else would be kept for it.
        precision: One of `PRECISIONS`, the type in which networks compute. Parameters, running statistics, losses and
            logits are in float32 in any case.
    """

    devices: int | None = 1
    steps_per_call: int | None = 1
    feed: str | None = None
    workers: int = 0
    remat: bool = False
    precision: str = "float32"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Execution":
        """Returns what a configuration asks for."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "precision"]
        return cls(**{name: settings["run"][name] for name in names}, precision=settings["precision"])

    def computing(self, module: Module) -> Module:
        """Returns a network as it computes while it is trained; one that computes in float32 is as it was."""
        return module if self.precision == "float32" else module.clone(dtype=self.precision)

    def chosen(self) -> tuple[jax.Device, ...]:
        """Returns the devices.

        Raises:
            SettingError: There are not as many.
        """
        there = jax.devices()
        count = len(there) if self.devices is None else self.devices
        if not 1 <= count <= len(there):
            raise SettingError("run.devices", count, f"1 to {len(there)}, the devices that JAX sees here")
        if jax.process_count() == 1:
            return tuple(there[:count])
        each, rest = divmod(count, jax.process_count())
        if rest:
            raise SettingError("run.devices", count, f"a multiple of {jax.process_count()}, the number of processes")
        by_process = [[d for d in there if d.process_index == i][:each] for i in range(jax.process_count())]
        return tuple(itertools.chain(*by_process))

    def own(self) -> jax.Device:
        """Returns the first of the devices that is this process's; of another's, nothing can be asked, nor put there.

        Raises:
            SettingError: There are not as many devices.
        """
        return next(device for device in self.chosen() if device.process_index == jax.process_index())

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


def default_precision() -> str:
    """Returns the precision of this machine's trainings where none is asked for."""
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"


class Step:
    """A compiled training step; the state that it is given is overwritten.

    Args:
        make: (axis_name) -> the function (state, data, batch) -> (state, metrics). The axis is None on one device;
            otherwise the function sees its part of the batch, and gives the same state and metrics on every device.
        execution: Where it runs.
    """

    def __init__(self, make: Callable[[str | None], StepFunction], execution: Execution = ONE_DEVICE):
        self._devices = execution.chosen()
        self._own = [i for i, device in enumerate(self._devices) if device.process_index == jax.process_index()]
        # A GPU is done with a small step before the host has handed over the next. On a CPU, XLA is many times slower
        # at convolutions inside a loop.
        default = 10 if self._devices[0].platform == "gpu" else 1
        self.steps_per_call = execution.steps_per_call or default
        whole = make(None)
        if len(self._devices) == 1:
            self._whole = compile_training(whole, donate_argnums=0)
            self._several = compile_training(_in_turn(whole), donate_argnums=0)
        else:
            self._whole, self._parts = self._map(whole), self._map(make(AXIS))
            self._several = self._map(_in_turn(make(AXIS)))

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
        own = np.array([self._devices[i] for i in self._own])
        return jax.device_put(tree, NamedSharding(Mesh(own, (AXIS,)), PartitionSpec()))

    def connect(self) -> None:
        """Has the devices open their connections, which processes that come apart in the first step would not get.

        Between CPUs, Gloo gives a process half a minute to be connected with; the first step is compiled by each
        process in its own time, which may differ by more. To be called where all have just waited for each other.
        """
        if len(self._own) < len(self._devices):
            total = jax.pmap(lambda x: jax.lax.psum(x, AXIS), axis_name=AXIS, devices=self._devices)
            jax.block_until_ready(total(np.ones(len(self._own), np.float32)))

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
            return self._whole(state, data, {name: self._repeat(rows) for name, rows in batch.items()})
        return self._parts(state, data, {name: self._split(rows) for name, rows in batch.items()})

    def several(self, state: Any, data: Any, batches: Sequence[Batch]) -> tuple[Any, dict[str, jax.Array]]:
        """Trains by batches of one size, a multiple of the number of devices, one after another in one call.

        Args:
            state: As in a call for one batch.
            data: Likewise.
            batches: Likewise.

        Returns:
            (state after the last, metrics [steps]).
        """
        count = len(self._devices)
        if count == 1:
            return self._several(state, data, _stack(batches))
        parts = [{name: self._split(rows) for name, rows in batch.items()} for batch in batches]
        return self._several(state, data, _stack(parts, axis=1))

    def _repeat(self, rows: Any) -> np.ndarray:
        """All rows for each device of this process."""
        rows = np.asarray(rows)
        return np.broadcast_to(rows, (len(self._own), *rows.shape))

    def _split(self, rows: Any) -> np.ndarray:
        """The parts of the devices of this process."""
        rows = np.asarray(rows)
        return rows.reshape(len(self._devices), -1, *rows.shape[1:])[self._own]


def _in_turn(step: StepFunction) -> StepFunction:
    """Returns the function that takes a step for each of the batches [steps, B, ...]."""

    def steps(state, data, batches):
        return jax.lax.scan(lambda state, batch: step(state, data, batch), state, batches)

    return steps


def _stack(batches: Sequence[Batch], axis: int = 0) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches], axis) for name in batches[0]}
