"""What a report is made of, small and made by hand."""

import io

import numpy as np
from PIL import Image

from refine_jax import evaluation
from refine_jax.asking import Answers
from refine_jax.files import write_record
from refine_jax.report import counts, gallery, projection
from refine_jax.report.material import NO_DEFENSE, Images, Material, Shown

NAMES = ("cat", "dog & <b>", "bird", "frog")
TARGET = 0
# The worked example of docs/metrics.md.
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
PERMUTATION = np.array([2, 3, 1, 0])
ANSWERS = {
    NO_DEFENSE: Answers(np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 2]), np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 3]), 4),
    "refine": Answers(np.array([0, 0, 1, 1, 1, 2, 2, 3, 2, 2]), np.array([0, 2, 1, 2, 1, 2, 2, 3, 0, 2]), 4),
}
SETTINGS = {
    "seed": 0,
    "dataset": {"name": "made", "train_images": None},
    "attack": {"name": "badnets", "target": 0, "rate": 0.1, "badnets": {"weight": 1.0}},
    "victim": {"name": "resnet18", "width": 16, "workdir": None},
    "defense": {"names": ["refine"], "width": 16},
}


def results():
    """As results.json holds them."""
    before, after = (
        evaluation.count(given, LABELS, TARGET, mapping, LABELS)
        for given, mapping in zip(ANSWERS.values(), (None, PERMUTATION), strict=True)
    )
    after["der"], after["ci95"]["der"] = evaluation.defense_effectiveness(before, after)
    needs = {"gradients": True, "labels": False, "clean_images": True}
    cost = {"train_seconds": 83.4, "train_images_per_second": 356.2, "parameters": 12345}
    attack = {"name": "badnets", "target": 0, "rate": 0.1, "poisoned_images": 12, "cover_images": 0}
    return {
        "schema": 1,
        "settings": SETTINGS,
        "environment": {"python": "3.11.1", "device": "cpu", "tpu": None},
        "hashes": {"attack": "a" * 64, "victim": "b" * 64, "refine": "c" * 64},
        "attack": attack,
        "victim": {**cost, "imported": None},
        "no_defense": {**before, "milliseconds_per_image": 0.5},
        "defenses": {"refine": {**after, **cost, "needs": needs, "findings": {}, "milliseconds_per_image": 1.25}},
        "warnings": ["refine has collapsed"],
    }


def swept():
    """As results.json holds them, with a defense of three strengths and what it has found out."""
    found = results()
    entries = []
    for pad, wrong in ((1, 0), (2, 2), (4, 5)):
        clean = np.where(np.arange(10) < wrong, 3, LABELS)
        counted = evaluation.count(Answers(clean, ANSWERS[NO_DEFENSE].triggered, 4), LABELS, TARGET, None, LABELS)
        entries.append({"settings": {"pad": pad}, "chosen": pad == 2, **counted, "der": None})
    figures = {name: value for name, value in entries[1].items() if name not in ("settings", "chosen")}
    found["defenses"]["shrinkpad"] = {
        **figures,
        "sweep": entries,
        "findings": {"target_class": 1, "target_share": 1 / 3},
    }
    return found


def make():
    """Of two classifiers, with everything that a report can show."""
    found, rng = results(), np.random.default_rng(0)
    clean = rng.integers(0, 256, (len(LABELS), 8, 8, 3)).astype(np.uint8)
    triggered = clean.copy()
    triggered[:, -2:, -2:] = 255
    images = Images(clean, LABELS, triggered, LABELS, True, TARGET, NAMES)
    classifiers, failed = [], {}
    for name, given in ANSWERS.items():
        mapped = None if name == NO_DEFENSE else int(PERMUTATION[TARGET])
        figures = found["no_defense"] if mapped is None else found["defenses"][name]
        confusion = counts.confusion(LABELS, given.clean, 4)
        flow = counts.destinations(LABELS, given.triggered, TARGET, mapped, 4)
        places = projection.project(rng.normal(size=(10, 5)), rng.normal(size=(10, 5)))
        classifiers.append(Shown(name, figures, mapped, confusion, flow, places))
        if mapped is not None:
            failed[name] = gallery.failures(LABELS, given.triggered, TARGET, mapped, given.clean)
    transforms = {"refine": lambda images: 1 - images / 255}
    examples = gallery.make([2, 5, 7, 8], clean, triggered, LABELS, ANSWERS, transforms, failed)
    sheet = io.BytesIO()
    Image.fromarray(np.concatenate([*clean[:4]], axis=1)).save(sheet, "PNG")
    curve = {"step": np.array([1.0, 20.0]), "loss": np.array([2.0, 1.0]), "accuracy": np.array([0.25, 0.75])}
    return Material(found, images, classifiers, examples, {"victim": curve}, LABELS, sheet.getvalue())


def write_runs(folder):
    """Leaves what a comparison reads of three runs: two in a folder, the first with a report, and one beside it.

    Their seeds are 2, 10 and 1, so that an order by number is not one by letter. Of the last, what its attacker knew
    and how it fared differ, too.
    """
    for name, seed, attack in (("sweep/a", 2, "badnets"), ("sweep/b", 10, "wanet"), ("alone", 1, "<i>")):
        (folder / name).mkdir(parents=True)
        found = results()
        found["settings"] = {**found["settings"], "seed": seed}
        found["attack"]["name"] = attack
        if name == "alone":
            found["settings"]["victim"] = {**found["settings"]["victim"], "adaptive": {"knowledge": "known"}}
            clean = Answers(np.zeros(10, int), ANSWERS[NO_DEFENSE].triggered, 4)
            found["no_defense"] = evaluation.count(clean, LABELS, TARGET, None, LABELS)
        else:
            found["warnings"] = []
        write_record(folder / name / "results.json", found)
    (folder / "sweep" / "a" / "report").mkdir()
    (folder / "sweep" / "a" / "report" / "index.html").touch()
