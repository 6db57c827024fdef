"""Orbax checkpoints of a training: the newest few and the best are kept, each with a checksum and an identity."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from refine_jax.errors import StorageError, WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.training import processes

logger = logging.getLogger(__name__)

# Where damaged checkpoints are put, beside the folder of the others.
DAMAGED = "damaged"
# What the operating system says where a file may be whole, and read a moment later.
_TRANSIENT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}


class DamagedCheckpointError(WorkdirError):
    """A checkpoint cannot be read, or is not what was written."""


class Checkpoints:
    """The checkpoints of one training, DIR/STEP/{state,meta}.

    `state` is a tree of arrays, `meta` JSON. Saving goes on in the background; `close` waits for it.

    Args:
        directory: Made where it is not there.
        keep: How many are kept, the newest; beside them the one with the lowest loss.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 2):
        self.directory = pathlib.Path(directory).absolute()
        self._losses: dict[int, float] = {}
        self._failed = False
        # What a killed run was writing is swept away; a warning would come of it otherwise.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(keep, self._losses), cleanup_tmp_directories=True, **_alone()
        )
        with self._storing():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._losses |= {step: self._read_loss(step) for step in self._manager.all_steps()}

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any], loss: float = math.inf) -> None:
        """Starts to write a checkpoint; returns once `state` may change again. Of several processes, the first writes.

        Args:
            step: Its name.
            state: Arrays.
            meta: JSON values.
            loss: That tells which checkpoint is the best.

        Raises:
            StorageError: This one, or the one before, which was still being written, cannot be.
        """
        if not processes.is_first():  # Orbax would leave the arrays out: of the host's, the first process saves them
            return
        # A copy on the host, because the training step overwrites the buffers of the state it is given.
        state = jax.tree.map(lambda leaf: np.array(leaf), state)
        meta = {**meta, "loss": loss if math.isfinite(loss) else None}
        self._losses[step] = loss
        kept = {**meta, "sha256": _checksum(state, meta)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(kept))
        with self._storing():
            self._manager.save(step, args=args, force=True)

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
            template: A tree of arrays, or of their shapes, like the one that was saved.
            step: Which; None: the newest.

        Returns:
            (state, meta), numpy arrays in the structure of the template.

        Raises:
            WorkdirError: There is none, it is damaged, or its arrays are not like the template's.
        """
        state, meta = _read(self._manager, self.directory, step)
        return _arrange(state, template, self.directory), meta

    def restore_newest_whole(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is not damaged; moves those aside that are.

        Args:
            template: As in `restore`.

        Returns:
            (state, meta); None where there is no checkpoint, damaged or not.

        Raises:
            WorkdirError: All are damaged, and stay where they are; or one is not like the template.
        """
        damaged: dict[int, DamagedCheckpointError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self.restore(template, step)
            except DamagedCheckpointError as error:
                damaged[step] = error
                continue
            for bad, reason in damaged.items():
                logger.warning("%s; step %d is gone on from instead", reason, step)
                self._move_aside(bad)
            return restored
        if damaged:
            newest = damaged[max(damaged)]
            raise WorkdirError(
                f"none of the {len(damaged)} checkpoints in {self.directory} is whole; {newest}: delete "
                f"{self.directory.parent} to train again"
            )
        return None

    def _move_aside(self, step: int) -> None:
        place = self.directory.parent / DAMAGED / str(step)
        shutil.rmtree(place, ignore_errors=True)
        with self._storing():
            place.parent.mkdir(exist_ok=True)
            os.replace(self.directory / str(step), place)
            self._manager.reload()
        logger.warning("%s was moved to %s", self.directory / str(step), place)

    def _read_loss(self, step: int) -> float:
        """The loss that an earlier run has saved a checkpoint with; infinite where there is none."""
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            return float(restored["meta"]["loss"])
        except Exception:  # of which kind depends on the damage, of which more is said when it is gone on from
            return math.inf

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Says in a sentence that a checkpoint could not be written."""
        try:
            yield
        except Exception as error:
            reason = _storage_failure(error)
            if reason is None:
                raise
            self._failed = True
            raise StorageError(
                f"no checkpoint can be written to {self.directory} ({reason}); those before it are whole, and the "
                "same command goes on from the newest"
            ) from error

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            with self._storing():
                try:
                    self._manager.wait_until_finished()
                finally:
                    self._manager.close()
        finally:
            if self._failed:  # what was begun takes up the place that is missing
                for part in self.directory.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(part, ignore_errors=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read(directory: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Reads the newest checkpoint of a training that is over, and changes nothing.

    Args:
        directory: Of its checkpoints.

    Returns:
        (state, meta): nested dicts of numpy arrays, as they lie in the file; JSON values.

    Raises:
        WorkdirError: There is none, or it is damaged.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise WorkdirError(f"{directory} holds no checkpoint")
    with contextlib.closing(
        ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(**_alone()))
    ) as manager:
        try:
            return _read(manager, directory, None)
        except DamagedCheckpointError as error:
            raise WorkdirError(
                f"{error}: delete it, and the stage that has written it goes on from the one before; or delete "
                f"{directory.parent} to train again"
            ) from error


def _alone() -> dict[str, Any]:
    """Options with which a process reads and writes by itself, however many there are (`training/processes.py`)."""
    if jax.process_count() == 1:
        return {"create": False}
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    # In the background, Orbax tells the other processes how far it is, and mistakes theirs for its own.
    return {"create": False, "multiprocessing_options": options, "enable_async_checkpointing": False}


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Tells Orbax to keep the newest checkpoints, and the one with the lowest loss.

    Args:
        keep: How many of the newest.
        losses: Step to loss, of all that there are.
    """

    def __init__(self, keep: int, losses: Mapping[int, float]):
        self._keep, self._losses = keep, losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each of the checkpoints whether it stays."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        losses = {step: self._losses.get(step, math.inf) for step in steps}
        best = [step for step in steps if losses[step] == min(losses.values()) < math.inf]
        kept = {*steps[-self._keep :], *best[-1:]}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _read(manager: ocp.CheckpointManager, directory: pathlib.Path, step: int | None) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint, the newest where `step` is None, and holds it to its checksum."""
    step = manager.latest_step() if step is None else step
    if step is None:
        raise WorkdirError(f"{directory} holds no checkpoint")
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=args)
        state, meta = restored["state"], dict(restored["meta"])
        wanted = meta.pop("sha256", None)
        found = _checksum(state, meta)
    except Exception as error:  # of which kind depends on which file is missing or cut short
        if isinstance(error, MemoryError):
            raise
        if _os_error(error) in _TRANSIENT:
            raise StorageError(
                f"the checkpoint {directory / str(step)} cannot be read now ({_storage_failure(error)}); nothing says "
                "that it is damaged, and the same command tries again"
            ) from error
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        raise DamagedCheckpointError(f"the checkpoint {directory / str(step)} cannot be read ({reason})") from error
    if wanted is None:  # of the first versions, which wrote none
        logger.warning("the checkpoint %s has no checksum", directory / str(step))
    elif found != wanted:
        raise DamagedCheckpointError(
            f"the checkpoint {directory / str(step)} is not what was written: its SHA-256 is another"
        )
    return state, meta


def _named(tree: Any) -> dict[str, Any]:
    """Arrays by their places, which are the same in the tree that was saved and in what Orbax gives back."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _checksum(state: Any, meta: dict[str, Any]) -> str:
    digest = hashlib.sha256(hash_arrays(_named(state)).encode())
    digest.update(json.dumps(meta, sort_keys=True).encode())
    return digest.hexdigest()


def _arrange(state: Any, template: Any, directory: pathlib.Path) -> Any:
    """Puts arrays in the structure of the template; refuses those of another network or optimizer."""
    there, wanted = _named(state), _named(template)
    different = [
        f"{name} is {_describe(there.get(name))}, this run's {_describe(wanted.get(name))}"
        for name in sorted({*there, *wanted})
        if _describe(there.get(name)) != _describe(wanted.get(name))
    ]
    if different:
        raise WorkdirError(
            f"{directory} holds a training of something else ({different[0]}; {len(different)} such arrays): delete "
            f"{directory.parent} to train again"
        )
    return jax.tree.unflatten(jax.tree.structure(template), [there[name] for name in wanted])


def _describe(leaf: Any) -> str:
    return "missing" if leaf is None else f"{np.dtype(leaf.dtype).name} of shape {tuple(leaf.shape)}"


def _storage_failure(error: BaseException) -> str | None:
    """What the operating system says was wrong, None where it was something else."""
    code = _os_error(error)
    return None if code is None else os.strerror(code)


def _os_error(error: BaseException) -> int | None:
    """The operating system's number of an error, None where it is another's; TensorStore has it in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None
