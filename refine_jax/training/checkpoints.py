"""Orbax checkpoints of a training: the newest few are kept, each with what identifies it."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_KEEP = 2


class Checkpoints:
    """The checkpoints of one training, DIR/STEP/{state,meta}.

    `state` is a tree of arrays, `meta` JSON. Saving goes on in the background; `close` waits for it.

    Args:
        directory: Made where it is not there.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = pathlib.Path(directory).absolute()
        policy = ocp.checkpoint_managers.LatestN(_KEEP)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once `state` may change again."""
        # A copy on the host, because the training step overwrites the buffers of the state it is given.
        state = jax.tree.map(lambda leaf: np.array(leaf), state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def restore(self, template: Any | None = None, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
            template: A tree of arrays, or of their shapes, like the one that was saved; None: nested dicts of
                numpy arrays, as they lie in the file.
            step: Which; None: the newest.

        Returns:
            (state, meta), numpy arrays.
        """
        step = self.latest_step() if step is None else step
        if template is not None:
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["meta"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

