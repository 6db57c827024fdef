"""Opens a run: everything that it works on, and everything that can be refused is refused here, before any work."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from refine_jax import attacks, datasets, import_stage, importing, lock, victim
from refine_jax import settings as settings_lib
from refine_jax import triggered as triggered_lib
from refine_jax.attacks.trigger import Attack
from refine_jax.datasets.images import Dataset
from refine_jax.defenses.registry import identifying
from refine_jax.errors import SettingError
from refine_jax.files import write_json
from refine_jax.training.parallel import Execution
from refine_jax.workdir import Record, Workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage of a run sees.

    Attributes:
        settings: From `settings.complete`.
        dataset: Clean; cut to dataset.train_images.
        work: The working directory.
        victim: Record of the victim, another run's where victim.workdir names one. The attack lies beside it.
        defenses: Name to record.
        imported: The victim that somebody else has trained, where it is such a one.
        triggered: What its attack success is measured on, where that is known.
    """

    settings: Mapping[str, Any]
    dataset: Dataset
    work: Workdir
    victim: Record
    defenses: Mapping[str, Record]
    imported: importing.Imported | None = None
    triggered: triggered_lib.Triggered | None = None

    @property
    def attack_folder(self) -> pathlib.Path:
        """Where the attack that the victim was trained with is kept."""
        return self.victim.folder.parent / "attack"

    @property
    def execution(self) -> Execution:
        """How trainings are run."""
        return Execution.of(self.settings)


@contextlib.contextmanager
def open_run(
    config: ml_collections.ConfigDict, workdir: str, *, overwrite: bool
) -> Iterator[tuple[Run, Attack | None]]:
    """Completes and checks a configuration, reads what it names, and opens the records of the stages.

    The working directory is locked as long as the run is open.

    Args:
        config: From a get_config() of configs/, with the command line's changes.
        workdir: Where everything is left, and where earlier outcomes are found.
        overwrite: Whether stages that were done from other settings are deleted, instead of refused.

    Yields:
        (what every stage sees, the attack as it is drawn now, None where none is known).

    Raises:
        RefineError: Something that the user can mend.
    """
    settings = settings_lib.complete(config)
    work = Workdir(workdir)
    dataset = load_dataset(settings)
    imported = importing.read(settings["victim"], dataset) if "checkpoint" in settings["victim"] else None
    if imported is not None:
        dataset = importing.name_classes(imported, dataset)
    attack, shown = check(settings, dataset), None
    if imported is not None:
        shown = import_stage.load_triggered(settings, dataset, imported, attack)
    made_from = describe_victim(settings, dataset, imported, shown)
    work.create()
    with lock.hold(work.lock):
        records = open_records(settings, made_from, work, overwrite=overwrite)
        write_json(work.settings, settings)
        if dataset.changes is not None:
            described = {"class_names": dataset.class_names, "sha256": dataset.sha256, **dataset.changes}
            write_json(work.dataset, described)
        yield Run(settings, dataset, work, *records, imported, shown), attack


def check(settings: Mapping[str, Any], dataset: Dataset) -> Attack | None:
    """Refuses what is impossible with these images; returns the attack as it is drawn now, None where none is known.

    Args:
        settings: From `settings.complete`.
        dataset: Already cut to dataset.train_images.

    Raises:
        SettingError: The first field that is impossible.
    """
    settings_lib.check(settings, dataset)
    attack = build_attack(settings, dataset)
    if attack is not None and "checkpoint" not in settings["victim"]:
        victim.check(settings["victim"], dataset)
        attack.check(dataset.train.labels)
    return attack


def load_dataset(settings: Mapping[str, Any]) -> Dataset:
    """Returns the data set of a configuration, cut to dataset.train_images.

    The images that stay are drawn by a rule of their own, not by the seed: it is the data set that is smaller.
    """
    section = dict(settings["dataset"])
    count = section.pop("train_images")
    return datasets.limit_training(datasets.load(**section), count)


def build_attack(settings: Mapping[str, Any], dataset: Dataset) -> Attack | None:
    """Draws the attack of a configuration, where one is known; refuses one that these images cannot show."""
    section = settings["attack"]
    if section["name"] == settings_lib.NO_ATTACK:
        return None
    options = {name: value for name, value in section[section["name"]].items() if value is not None}
    return attacks.build(
        section["name"],
        dataset.image_size,
        target=section["target"],
        rate=section["rate"],
        seed=settings["seed"],
        **options,
    )


def describe_victim(
    settings: Mapping[str, Any],
    dataset: Dataset,
    imported: importing.Imported | None,
    shown: triggered_lib.Triggered | None,
) -> dict[str, Any]:
    """Returns what a victim depends on: not where files lie, but what they hold where their names do not say it."""
    places = ("data_dir", "root", "test_root", "decoded")
    images = {name: value for name, value in settings["dataset"].items() if name not in places}
    if dataset.sha256 is not None:
        images["sha256"] = dataset.sha256
    if imported is None:
        trained = {name: value for name, value in settings["victim"].items() if name != "workdir"}
        general = {"seed": settings["seed"], **_describe_precision(settings)}
        return {**general, "dataset": images, "attack": settings["attack"], "victim": trained}
    return {"seed": settings["seed"], "dataset": images, **import_stage.identity(settings, imported, shown)}


def _describe_precision(settings: Mapping[str, Any]) -> dict[str, str]:
    # Stages of float32 do not say so: they are what they were before there was a choice.
    return {} if settings["precision"] == "float32" else {"precision": settings["precision"]}


def open_records(
    settings: Mapping[str, Any], made_from: dict[str, Any], work: Workdir, *, overwrite: bool
) -> tuple[Record, dict[str, Record]]:
    """Opens the records of the stages, and refuses what was made from other settings, or deletes it.

    Args:
        settings: From `settings.complete`.
        made_from: From `describe_victim`.
        work: The working directory.
        overwrite: Whether to delete.

    Returns:
        (record of the victim, name to record of the defenses).
    """
    borrowed = settings["victim"]["workdir"]
    record = Record(Workdir(borrowed).victim if borrowed else work.victim, made_from)
    if borrowed:
        # Seed and precision of this run are the defense's: many may share one victim.
        record.adopt("seed")
        record.adopt("precision")
        if changed := record.changes():
            raise SettingError(
                "victim.workdir", borrowed, f"a run whose victim has these settings; of that one {'; '.join(changed)}"
            )
        if record.outcome is None:
            raise SettingError("victim.workdir", borrowed, "the working directory of a run whose victim is trained")
    elif record.admit("victim", overwrite=overwrite):
        work.clear()
        record.delete()  # last: what was made from it is never there without it

    defenses = {}
    for name in settings["defense"]["names"]:
        general = {"seed": settings["seed"], **_describe_precision(settings)}
        own = identifying(name, settings["defense"])
        made_from = {**general, "defense": own, "victim_stage": record.settings}
        defenses[name] = Record(work.defense(name), made_from)
        if defenses[name].admit(f"defend ({name})", overwrite=overwrite):
            work.clear_outcomes()
            defenses[name].delete()
    return record, defenses
