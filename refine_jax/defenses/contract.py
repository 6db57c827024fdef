"""What a defense says of itself, and of what it was fitted to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refine_jax.training.loop import Outcome
from refine_jax.training.state import count_parameters


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a defense cannot do without, beside the classifier's answers: columns of every table that compares.

    Attributes:
        gradients: Derivatives through the classifier, so its weights or an owner who computes them.
        labels: The clean images' true classes.
        clean_images: Images to fit it with.
    """

    gradients: bool
    labels: bool
    clean_images: bool


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A defense that is ready, and what that took.

    Attributes:
        defended: `defended(images float [0, 1] [N, H, W, 3])` gives probabilities [N, K].
        train_seconds: Spent fitting, over all runs that it took.
        train_images_per_second: Of the last run; None where nothing was trained in it.
        parameters: How many numbers were trained.
        steps: Steps of the one training that left its checkpoints in the journal's folder; None: it is of another
            kind.
        parts: Where there are several trainings, the steps of each by the folder of its checkpoints in the journal's.
        findings: JSON values that it has found out about the classifier, such as the target class.
    """

    defended: Any
    train_seconds: float = 0.0
    train_images_per_second: float | None = None
    parameters: int = 0
    steps: int | None = None
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    findings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, defended: Any, outcome: Outcome) -> "Fitted":
        """Puts a defense together with what the one training took that it consists of."""
        parameters, steps = count_parameters(outcome.state.params), int(outcome.state.step)
        return cls(defended, outcome.seconds, outcome.images_per_second, parameters, steps)
