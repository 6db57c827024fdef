"""What lies now in the files of the user's own that runs are made from, whose settings say only where they are."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from refine_jax import import_stage, importing, opening
from refine_jax.datasets import folder
from refine_jax.errors import RefineError
from refine_jax.files import hash_arrays
from refine_jax.settings import NO_ATTACK


def hashes(settings: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the SHA-256 of the pictures of a folder, of an imported victim, and of triggered pictures for it.

    Args:
        settings: From `settings.complete`.

    Returns:
        By their names among the 'hashes' of results.json. {} where the settings say all, as of a named data set and a
        victim that is trained; or where the files cannot be read, as where results were brought here without them.
    """
    if settings["dataset"]["name"] != folder.NAME and "checkpoint" not in settings["victim"]:
        return {}
    return _read(json.dumps({section: settings[section] for section in ("seed", "dataset", "attack", "victim")}))


@functools.cache  # of every run it is asked often
def _read(text: str) -> Mapping[str, str]:
    settings = json.loads(text)
    try:
        dataset = opening.load_dataset(settings)
        found = {"dataset": dataset.sha256}
        if "checkpoint" in settings["victim"]:
            imported = importing.read(settings["victim"], dataset)
            found["victim"] = hash_arrays(imported.classifier.variables)
            if settings["attack"]["name"] == NO_ATTACK:  # a named attack's are made of the data set's
                named = importing.name_classes(imported, dataset)
                shown = import_stage.load_triggered(settings, named, imported, None)
                found["attack"] = None if shown is None else shown.sha256()
    except RefineError:
        return {}
    return {name: sha256 for name, sha256 in found.items() if sha256 is not None}
