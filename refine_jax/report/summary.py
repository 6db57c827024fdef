"""What a run has come to, in sentences, and the facts about it as pairs of names and values."""

from collections.abc import Mapping, Sequence
from typing import Any

from refine_jax import fields
from refine_jax.report.material import Material
from refine_jax.report.tables import NEEDS


def sentences(material: Material) -> list[str]:
    """Returns what the figures say, the victim alone first."""
    names, images = material.images.class_names, material.images
    said = []
    for shown in material.classifiers:
        figures, parts = shown.figures, []
        who = "Without a defense" if shown is material.classifiers[0] else f"Behind {shown.name}"
        if figures.get("ba") is not None:
            parts.append(f"{_percent(figures['ba'])} of the clean images are answered with their class")
        elif figures.get("agreement") is not None:
            parts.append(f"{_percent(figures['agreement'])} of the clean images are answered as without it")
        if figures.get("asr") is not None and images.target is not None:
            parts.append(f"{_percent(figures['asr'])} of the triggered ones with the target, {names[images.target]!r}")
        if figures.get("mapped_asr") is not None and shown.mapped_target is not None:
            mapped = names[shown.mapped_target]
            parts.append(f"{_percent(figures['mapped_asr'])} with the class that the target is mapped to, {mapped!r}")
        if parts:
            said.append(f"{who}, {_enumerate(parts)}.")
    return said


def attack(results: Mapping[str, Any], class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what was attacked and how."""
    known, settings = results["attack"], results["settings"]
    target = known.get("target")
    facts = [
        ("data set", settings["dataset"]["name"]),
        ("classifier", _victim(results)),
        ("attack", known["name"]),
        ("attacker knows REFINE, its output mapping", settings["victim"].get("adaptive", {}).get("knowledge")),
        ("target class", None if target is None else numbered(target, class_names)),
        ("poisoned training images", known.get("poisoned_images")),
        ("images changed under their own label", known.get("cover_images") or None),
        *((name.replace("_", " "), value) for name, value in settings["attack"].get(known["name"], {}).items()),
    ]
    benign = known.get("benign_classifier")
    if benign:
        facts.append(("BA of the attack's benign classifier", _percent(benign["ba"])))
    return [(name, str(value)) for name, value in facts if value is not None]


def numbered(label: int, class_names: Sequence[str]) -> str:
    """Returns the number of a class, and its name where that says more."""
    return str(label) if class_names[label] == str(label) else f"{label} ({class_names[label]})"


def _victim(results: Mapping[str, Any]) -> str:
    section, imported = results["settings"]["victim"], results["victim"].get("imported")
    width = f", width {section['width']}" if section.get("width") else ""
    return section["name"] + (f", imported ({imported['format']})" if imported else f"{width}, trained here")


def costs(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of what the trainings needed and took."""
    header = ["", "needs", "training", "images/s", "parameters", "per image"]
    rows = [["victim", "-", *_training(results["victim"]), _amount(results["no_defense"], "milliseconds_per_image")]]
    for name, figures in results["defenses"].items():
        needs = [title for need, title in NEEDS.items() if figures.get("needs", {}).get(need)]
        told = ", ".join(needs) or ("nothing" if "needs" in figures else "-")
        rows.append([name, told, *_training(figures), _amount(figures, "milliseconds_per_image")])
    return header, rows


def findings(results: Mapping[str, Any], class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what the defenses have found out about the victim, such as the target class."""
    found = []
    for defense, figures in results["defenses"].items():
        for name, value in (figures.get("findings") or {}).items():
            told = _value(value)
            if name == "target_class" and isinstance(value, int) and value < len(class_names):
                told = numbered(value, class_names)
            elif isinstance(value, float):
                told = f"{value:.4g}"
            found.append((f"{defense}: {name.replace('_', ' ')}", told))
    return found


def _training(figures: Mapping[str, Any]) -> list[str]:
    forms = {"train_seconds": "{:,.0f} s", "train_images_per_second": "{:,.0f}", "parameters": "{:,}"}
    return ["-" if figures.get(name) is None else form.format(figures[name]) for name, form in forms.items()]


def _amount(figures: Mapping[str, Any], name: str) -> str:
    return "-" if figures.get(name) is None else f"{figures[name]:.3g} ms"


def settings(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns every field of the configuration, by section."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for field, value in fields.leaves(results["settings"]):
        section, _, name = field.rpartition(".")
        sections.setdefault(section or "general", []).append((name, _value(value)))
    return [*sections.items()]


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _enumerate(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
