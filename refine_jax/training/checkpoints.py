"""Orbax checkpoints of a training: the newest few are kept, each with what identifies it."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from refine_jax.errors import WorkdirError

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
        # What a killed run was writing is swept away; a warning would come of it otherwise.
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True, cleanup_tmp_directories=True)
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

        Raises:
            WorkdirError: There is none, it is damaged, or its arrays are not like the template's.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise WorkdirError(f"{self.directory} holds no checkpoint")
        if template is not None:
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # of which kind depends on which file is missing or cut short
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
            raise WorkdirError(
                f"the checkpoint {self.directory / str(step)} cannot be read ({reason}): delete it to go on from the "
                f"one before, or {self.directory.parent} to train again"
            ) from error
        if template is not None:
            self._compare_shapes(restored["state"], template)
        return restored["state"], restored["meta"]

    def _compare_shapes(self, state: Any, template: Any) -> None:
        # Orbax hands out whatever shape lies in the file.
        for (path, found), wanted in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(template), strict=True
        ):
            if found.shape != wanted.shape:
                raise WorkdirError(
                    f"{self.directory} holds {jax.tree_util.keystr(path)} of shape {found.shape}, this run has one of "
                    f"shape {wanted.shape}: delete {self.directory.parent} to train again"
                )

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()
