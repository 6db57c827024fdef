"""What makes the figures of a run doubtful: a victim, an attack or a defense that is not what it should be."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from refine_jax.defenses import pseudo_labels

# An attack that succeeds less often is none that a defense could be praised for.
SMALLEST_ASR = 0.8
# Of all answers, the share of one class from which on there is no telling the others.
COLLAPSED = 0.99


def find(
    no_defense: Mapping[str, Any], defenses: Mapping[str, Mapping[str, Any]], labels: np.ndarray | None
) -> list[str]:
    """Returns a sentence for each thing that makes the figures doubtful.

    Args:
        no_defense: From `evaluation.measure`, of the victim alone.
        defenses: Name to the same behind each defense.
        labels: Of the clean test images. Integers [N]; None where they are not known: then no BA is either, and a
            defense is judged by its agreement with the victim.
    """
    # How often naming one class every time would be right, or, without labels, agree with the victim.
    by_class = no_defense.get("answers") if labels is None else np.bincount(labels)
    chance = None if by_class is None else float(np.max(by_class) / np.sum(by_class))
    found = []
    if _is_chance(no_defense, chance):
        found.append(f"the victim has learned nothing: {_about_chance(no_defense, chance)}")
    if no_defense["asr"] is not None and no_defense["asr"] < SMALLEST_ASR:
        found.append(
            f"the attack did not take: its ASR without a defense is {_percent(no_defense['asr'])}, under "
            f"{100 * SMALLEST_ASR:.0f} %, so a low one behind a defense says little"
        )
    for name, figures in defenses.items():
        answers = figures["answers"]
        if answers and chance and chance < COLLAPSED and max(answers) >= COLLAPSED * sum(answers):
            share, best = max(answers) / sum(answers), answers.index(max(answers))
            found.append(f"{name} has collapsed: {_percent(share)} of the clean images are answered with class {best}")
        elif _is_chance(figures, chance):
            found.append(f"{name} has learned nothing: {_about_chance(figures, chance)}")
        if pseudo_labels.is_too_much(figures.get("findings", {})):
            found.append(f"{name}: {pseudo_labels.warning(figures['findings'])}")
    return found


def _is_chance(figures: Mapping[str, Any], chance: float | None) -> bool:
    name = _measure_of_use(figures)
    return figures.get(name) is not None and chance is not None and figures["ci95"][name][0] <= chance


def _about_chance(figures: Mapping[str, Any], chance: float | None) -> str:
    name = _measure_of_use(figures)
    low, high = figures["ci95"][name]
    return (
        f"its {'BA' if name == 'ba' else name} is {_percent(figures[name])} [{100 * low:.2f}, {100 * high:.2f}], and "
        f"naming the most frequent class every time gives {_percent(chance or 0)}"
    )


def _measure_of_use(figures: Mapping[str, Any]) -> str:
    return "agreement" if figures["ba"] is None else "ba"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"  # fewer digits would have 7,197 of 9,000 stand as 80.0 %, and under 80 %
