"""Several seeds of REFINE in one program, beside the same seeds one after another.

    python -m benchmarks.seeds [--seeds 2,4] [--width 16] [--unet_width 16] [--size 16] [--batch 64] [--steps 1]
                               [--rounds 5] [--json FILE]

A round takes steps of every seed, one seed after the other, with the program of one; then as many of all at once.
Weights and images are random, since their content costs nothing. `ratio` is the speed of all at once over that of one
after another: above 1, they are faster together. `planned` is the memory that XLA plans for the step of one seed and
for that of all, beside what they are given.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import environment, networks
from refine_jax.classifier import Classifier
from refine_jax.defenses import refine, refine_seeds
from refine_jax.training.compilation import compile_training
from refine_jax.training.parallel import Execution, default_precision

K, POOL = 10, 512


def make_classifier(width: int, size: int) -> Classifier:
    """Returns a ResNet-18 with random weights."""
    network = networks.build("resnet18", K, width=width)
    init = jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 0})
    variables = init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return Classifier("resnet18", variables, K, (0.5,) * 3, (0.25,) * 3, options={"width": width})


class Seeds:
    """Trainings of several seeds, each by itself and all at once.

    Args:
        classifier: That is defended.
        settings: Of REFINE, whole.
        size: Side of the images.
        count: Of the seeds.

    Attributes:
        alone: The state of each seed.
        together: The states of all.
        planned: Bytes that XLA plans for a step of one seed, and of all, beside what they are given.
    """

    def __init__(self, classifier: Classifier, settings: Mapping[str, Any], size: int, count: int):
        execution = Execution(precision=default_precision())
        training = refine.Training.of(classifier, settings, execution)
        batch = settings["batch_size"]
        _, tx = training.descent(POOL // batch)
        seeds = range(count)
        images = np.random.default_rng(0).integers(0, 256, (POOL, size, size, 3), np.uint8)
        common = {"images": jnp.asarray(images), "classifier": refine.frozen(classifier, execution)}
        self.together, drawn = refine_seeds.begin(training, tx, seeds, classifier.num_classes, (size, size))
        # A step overwrites the state that it is given, so none may share an array with another.
        self.alone = [jax.tree.map(jnp.copy, refine_seeds.state_of_seed(self.together, place)) for place in seeds]
        numbers = np.arange(POOL, dtype=np.int32)
        indices = np.stack([np.roll(numbers, seed)[:batch] for seed in seeds], axis=1)  # [B, seeds]

        own = [common | {name: value[place] for name, value in drawn.items()} for place in seeds]
        self._own = [(data, {"indices": indices[:, place]}) for place, data in enumerate(own)]
        self._all = (common | drawn, {"indices": indices})
        step = training.step(tx, None)
        steps = refine_seeds.step_of_seeds(step, seeds, drawn)
        self._step = compile_training(step, donate_argnums=0).lower(self.alone[0], *self._own[0]).compile()
        self._steps = compile_training(steps, donate_argnums=0).lower(self.together, *self._all).compile()
        self.planned = [program.memory_analysis().temp_size_in_bytes for program in (self._step, self._steps)]

    def in_turn(self) -> None:
        """Takes a step of each, and waits for it."""
        self.alone = [self._step(state, *own)[0] for state, own in zip(self.alone, self._own, strict=True)]
        jax.block_until_ready(self.alone)

    def at_once(self) -> None:
        """Takes a step of all, and waits for it."""
        self.together, _ = self._steps(self.together, *self._all)
        jax.block_until_ready(self.together)


def compare(trainings: Seeds, rounds: int, steps: int) -> list[float]:
    """Returns the ratio of each round; a step of each comes before them."""
    trainings.in_turn(), trainings.at_once()
    ratios = []
    for _ in range(rounds):
        seconds = []
        for run in (trainings.in_turn, trainings.at_once):
            start = time.perf_counter()
            for _ in range(steps):
                run()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return ratios


def main() -> None:
    """Prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--seeds", type=numbers, default=[2, 4], help="how many")
    parser.add_argument("--width", type=int, default=16, help="of ResNet-18")
    parser.add_argument("--unet_width", type=int, default=16, help="of the U-Net")
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument("--batch", type=int, default=64, help="images a step of each seed, at most 512")
    parser.add_argument("--steps", type=int, default=1, help="steps of each seed in a round")
    parser.add_argument("--rounds", type=int, default=5, help="in which both are timed in turn")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    classifier = make_classifier(arguments.width, arguments.size)
    settings = refine.complete({"width": arguments.unet_width, "batch_size": arguments.batch})
    rows: list[dict[str, Any]] = []
    print(f"{'seeds':>6}{'ratio':>8}{'least':>8}{'greatest':>10}{'planned, one':>15}{'planned, all':>15}")
    for count in arguments.seeds:
        trainings = Seeds(classifier, settings, arguments.size, count)
        ratios = compare(trainings, arguments.rounds, arguments.steps)
        median, shown = statistics.median(ratios), [f"{size / 1e6:.1f} MB" for size in trainings.planned]
        print(f"{count:6}{median:8.2f}{min(ratios):8.2f}{max(ratios):10.2f}{shown[0]:>15}{shown[1]:>15}", flush=True)
        rows.append({"seeds": count, "ratios": ratios, "median": median, "planned_bytes": trainings.planned})
    if arguments.json:
        described: dict[str, Any] = {"environment": environment.describe(), "arguments": vars(arguments)}
        arguments.json.write_text(json.dumps(described | {"rows": rows}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
