"""What lies where in a working directory, and the records that keep runs from being mixed."""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from refine_jax import artifacts
from refine_jax.errors import WorkdirError
from refine_jax.fields import differences
from refine_jax.files import read_record, write_record

SCHEMA = 1


class Workdir:
    """Paths of a working directory.

    Args:
        root: The directory; made when something is first written.

    Raises:
        WorkdirError: There is a file of this name, or it can be no name.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = pathlib.Path(root).expanduser()
        try:
            is_file = self.root.exists() and not self.root.is_dir()
        except OSError as error:
            raise WorkdirError(f"the working directory {self.root} cannot be: {error.strerror}") from error
        if is_file:
            raise WorkdirError(f"the working directory {self.root} is a file: name a directory")
        self.settings = self.root / "settings.json"
        self.dataset = self.root / "dataset.json"
        self.metrics = self.root / "metrics.jsonl"
        self.results = self.root / "results.json"
        self.lock = self.root / "lock"
        self.attack = self.root / "attack"
        self.victim = self.root / "victim"
        self.export = self.root / "export"
        self.report = self.root / "report"

    def defense(self, name: str) -> pathlib.Path:
        """Returns the folder of a defense."""
        return self.root / "defense" / name

    def figures(self, name: str, variant: str | None = None) -> pathlib.Path:
        """Returns the file of what was measured behind a defense, or a variant of it, or of the victim alone."""
        folder = self.root / "evaluation"
        return folder / f"{name}.json" if variant is None else folder / name / f"{variant.replace(' ', '_')}.json"

    def answers(self, name: str) -> pathlib.Path:
        """Returns the file of the classes that those figures were counted from."""
        return self.figures(name).with_suffix(".npz")

    def unfinished(self, name: str, variant: str | None = None) -> pathlib.Path:
        """Returns the file of what a classifier has answered that is still being asked; arguments as of `figures`."""
        return self.figures(name, variant).with_suffix(".unfinished.npz")

    def create(self) -> None:
        """Makes the directory.

        Raises:
            WorkdirError: It cannot be made or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkdirError(f"the working directory {self.root} cannot be written to: {error.strerror}") from error

    def clear(self) -> None:
        """Deletes what was made with the victim and from it, but for the victim.

        Raises:
            WorkdirError: As of `clear_outcomes`; then nothing is deleted.
        """
        self._require_own_outcomes()
        for folder in (self.attack, self.root / "defense", self.root / "evaluation", self.root / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        self.clear_outcomes()

    def clear_outcomes(self) -> None:
        """Deletes what was made from the defenses.

        Raises:
            WorkdirError: There are files in export/ or report/ that are not of this program; then nothing is deleted.
        """
        self._require_own_outcomes()
        self.results.unlink(missing_ok=True)
        for folder in (self.export, self.report):
            shutil.rmtree(folder, ignore_errors=True)

    def _require_own_outcomes(self) -> None:
        for folder in (self.export, self.report):
            artifacts.require_own(folder)


class Record:
    """stage.json in a stage's folder: from which settings its outcome is, and whether it is whole.

    Args:
        folder: Of the stage.
        settings: That the stage's outcome depends on.

    Raises:
        WorkdirError: There is a stage.json that this program has not written.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self.folder, self.settings = folder, settings
        self._path = folder / "stage.json"
        self._kept = read_record(self._path, ("schema", "settings", "outcome")) if self._path.exists() else None
        if self._kept is not None and not (
            isinstance(self._kept["settings"], dict) and isinstance(self._kept["outcome"], dict | None)
        ):
            raise WorkdirError(f"{self._path} is damaged (no settings, no outcome): delete the folder that it is in")

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What the stage has come to, None as long as it has not."""
        return self._kept["outcome"] if self._kept else None

    def require(self, stage: str) -> dict[str, Any]:
        """Returns the outcome.

        Args:
            stage: That comes to it, for the error.

        Raises:
            WorkdirError: The stage has not come to its end.
        """
        if self.outcome is None:
            raise WorkdirError(f"{self.folder} holds nothing finished: stage {stage!r} does that")
        return self.outcome

    def adopt(self, field: str) -> None:
        """Takes one of the settings from the record itself, so that it makes no difference."""
        if self._kept:
            kept, own = self._kept["settings"], {k: v for k, v in self.settings.items() if k != field}
            self.settings = own | ({field: kept[field]} if field in kept else {})

    def admit(self, stage: str, *, overwrite: bool) -> bool:
        """Refuses to go on where other settings have left something.

        Args:
            stage: Its name, for the error.
            overwrite: Whether that is to be deleted instead.

        Returns:
            Whether there is something to be deleted.

        Raises:
            WorkdirError: The folder is from other settings; which.
        """
        if self._kept is None:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise WorkdirError(f"{self.folder} has no stage.json, so it is not of this program: move it away")
            return False
        changed = self.changes()
        if changed and not overwrite:
            raise WorkdirError(
                f"stage {stage!r} in {self.folder} is from other settings ({'; '.join(changed)}): use those, another "
                "--workdir, or --overwrite to delete it and what was made from it"
            )
        return bool(changed)

    def changes(self) -> list[str]:
        """Returns how the settings differ from those that have left something; nothing where nothing was left."""
        if self._kept is None:
            return []
        changed = differences(self._kept["settings"], self.settings)
        if self._kept.get("schema") != SCHEMA:
            changed.insert(0, f"schema: {self._kept.get('schema')} -> {SCHEMA}")
        return changed

    def delete(self) -> None:
        """Deletes the stage's folder: it is whole, or not there."""
        if self._kept is not None:
            going = self.folder.with_name(f".{self.folder.name}.deleted")
            shutil.rmtree(going, ignore_errors=True)
            self.folder.rename(going)
            shutil.rmtree(going)
            self._kept = None

    def begin(self) -> None:
        """Notes the settings before the first outcome is written, so that a stage cut short is known too."""
        if self._kept is None:
            self._write(None)

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """Notes that the stage came to its end, and what it came to."""
        self._write(dict(outcome))

    def _write(self, outcome: dict[str, Any] | None) -> None:
        self._kept = {"schema": SCHEMA, "settings": self.settings, "outcome": outcome}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(self._path, self._kept)
