"""Images per second of both training steps and of evaluation, and their share of the rate of matrix products.

    python -m benchmarks.step [--precision float32,bfloat16] [--batch 128,256] [--steps_per_call 1,10] [--devices 1]
                              [--width 64] [--rounds 5] [--seconds 2] [--json FILE]

Every combination is timed on this machine's devices: ResNet-18 and U-Net on 32 x 32 images, as in configs/cifar.py.
Weights and images are random, since their content costs nothing; augmentation is part of the steps. The rate is that
of one large matrix product of the same precision on one device, times the devices; both count multiply-adds.
Evaluation is in float32, as always. A rehearsal of the program itself: --width 2 --batch 4 --seconds 0.1 --rounds 2.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import environment, mapped, networks, victim
from refine_jax.classifier import Classifier
from refine_jax.defenses import mapping, refine
from refine_jax.networks.unet import UNet
from refine_jax.training import optimizer
from refine_jax.training.parallel import PRECISIONS, Execution, Step, default_precision
from refine_jax.training.state import create_train_state

K, SIDE, POOL = 10, 32, 2048
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclasses.dataclass(frozen=True)
class Networks:
    """What is timed.

    Attributes:
        network: The classifier's.
        unet: Likewise.
        network_work: Multiply-adds of the classifier, forward, for an image.
        unet_work: Likewise.
    """

    network: Any
    unet: UNet
    network_work: float
    unet_work: float

    @classmethod
    def of_width(cls, width: int) -> "Networks":
        """Makes both."""
        network, unet = networks.build("resnet18", K, width=width), UNet(width=width)
        return cls(network, unet, _forward_work(network), _forward_work(unet))


def _forward_work(module: Any) -> float:
    # A GPU's backend counts nothing before it has compiled.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        image = jnp.zeros((1, SIDE, SIDE, 3))
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
        return jax.jit(module.apply).lower(variables, image).cost_analysis()["flops"] / 2


def make_data(images: np.ndarray) -> dict[str, Any]:
    """Returns what both trainings have on the device."""
    return {"images": jnp.asarray(images), "key": jax.random.key(3)}


def make_victim(nets: Networks, images: np.ndarray, execution: Execution) -> tuple[Step, Any, Any]:
    """Returns step, state and data of the victim's training."""
    settings = {**optimizer.DEFAULTS, "learning_rate": 0.1, "decay": 0.1}
    tx = optimizer.create_optimizer(settings, optimizer.create_schedule(settings, 100))
    state = create_train_state(nets.network, tx, jax.random.key(1), (SIDE, SIDE))
    data = make_data(images) | {
        "labels": jnp.arange(POOL) % K,
        "is_poisoned": jnp.zeros(POOL, bool),
        "mean": jnp.asarray(MEAN),
        "std": jnp.asarray(STD),
    }
    network = execution.computing(nets.network)

    def make(axis: str | None):
        return victim.train_step(mapped.on_axis(network, axis), tx, lambda images, *_: images, axis)

    return Step(make, execution), state, data


def make_defended(nets: Networks) -> refine.Defended:
    """Returns a defended classifier with random weights."""
    keep = optax.identity()
    states = (create_train_state(net, keep, jax.random.key(0), (SIDE, SIDE)) for net in (nets.network, nets.unet))
    variables, unet_variables = (state.variables for state in states)
    options = {"width": nets.network.width}
    classifier = Classifier("resnet18", variables, K, MEAN, STD, options=options)
    permutation = mapping.derangement(jax.random.key(2), K)
    return refine.Defended(classifier, unet_variables, permutation, nets.unet, refine.Objective.of(None), (SIDE, SIDE))


def make_refine(nets: Networks, images: np.ndarray, execution: Execution) -> tuple[Step, Any, Any]:
    """Returns step, state and data of the U-Net's training."""
    settings = refine.complete(None)
    tx = optimizer.create_optimizer(settings, optimizer.create_schedule(settings, 100))
    state = create_train_state(nets.unet, tx, jax.random.key(1), (SIDE, SIDE))
    defended = make_defended(nets)
    classifier = defended.classifier.computing_in(execution.precision)
    data = make_data(images) | {"classifier": classifier, "permutation": defended.permutation}
    unet, wanted = execution.computing(nets.unet), refine.Objective.of(None)

    def make(axis: str | None):
        return refine.train_step(mapped.on_axis(unet, axis), tx, wanted, axis)

    return Step(make, execution), state, data


def repeated(step: Step, state: Any, data: Any, batch: int) -> Callable[[int], int]:
    """Returns the function that makes so many calls, waits for the last, and tells the images trained on."""
    kept = [step.place(state)]
    data = step.place(data)
    indices = [(np.arange(batch, dtype=np.int32) + i) % POOL for i in range(step.steps_per_call)]
    batches = [{"indices": rows} for rows in indices]

    def run(calls: int) -> int:
        for _ in range(calls):
            if len(batches) == 1:
                kept[0], metrics = step(kept[0], data, batches[0])
            else:
                kept[0], metrics = step.several(kept[0], data, batches)
        jax.block_until_ready((kept[0], metrics))
        return calls * len(batches) * batch

    return run


def evaluated(defended: refine.Defended, images: np.ndarray, batch: int) -> Callable[[int], int]:
    """Returns the same for the answers of a defended classifier to images that come from the host."""
    predict = jax.jit(lambda defended, images: defended(images).argmax(axis=-1))

    def run(calls: int) -> int:
        for _ in range(calls):
            answers = predict(defended, jnp.asarray(images[:batch], jnp.float32) / 255)
        jax.block_until_ready(answers)
        return calls * batch

    return run


def speed(run: Callable[[int], int], seconds: float, rounds: int) -> float:
    """Returns the median of images per second over rounds of about so many seconds; compilation does not count."""
    run(1)
    start = time.perf_counter()
    run(1)
    calls = max(1, round(seconds / (time.perf_counter() - start)))
    speeds = []
    for _ in range(rounds):
        start = time.perf_counter()
        images = run(calls)
        speeds.append(images / (time.perf_counter() - start))
    return statistics.median(speeds)


def matrix_rate(precision: str, seconds: float, rounds: int) -> float:
    """Returns multiply-adds per second of a large matrix product on one device."""
    side = 8192 if jax.default_backend() == "gpu" else 1024
    matrix = jnp.ones((side, side), precision)
    product = jax.jit(lambda a, b: a @ b)

    def run(calls: int) -> int:
        for _ in range(calls):
            out = product(matrix, matrix)
        jax.block_until_ready(out)
        return calls

    return side**3 * speed(run, seconds, rounds)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times every combination, and prints a row for each."""
    nets = Networks.of_width(arguments.width)
    images = np.random.default_rng(0).integers(0, 256, (POOL, SIDE, SIDE, 3), np.uint8)
    work = {
        "victim": 3 * nets.network_work,
        "refine": 3 * (nets.network_work + nets.unet_work),
        "evaluate": nets.network_work + nets.unet_work,
    }
    timing = (arguments.seconds, arguments.rounds)
    rates = {precision: matrix_rate(precision, *timing) for precision in {*arguments.precision, "float32"}}
    head = ("step", "precision", "batch", "steps_per_call", "devices", "images_per_second", "share_of_matrix_rate")
    widths = [max(len(name), len("evaluate")) + 2 for name in head]
    print("".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True)))
    rows = []

    def add(name: str, precision: str, batch: int, per_call: int, devices: int, run: Callable[[int], int]) -> None:
        images_per_second = speed(run, *timing)
        share = images_per_second * work[name] / (rates[precision] * devices)
        rows.append(
            dict(zip(head, (name, precision, batch, per_call, devices, images_per_second, share), strict=True))
        )
        shown = (name, precision, batch, per_call, devices, f"{images_per_second:,.1f}", f"{share:.3f}")
        print("".join(f"{value:>{width}}" for value, width in zip(shown, widths, strict=True)), flush=True)

    grid = (arguments.precision, arguments.batch, arguments.steps_per_call, arguments.devices)
    for precision, batch, per_call, devices in itertools.product(*grid):
        for name, make in (("victim", make_victim), ("refine", make_refine)):
            step, state, data = make(nets, images, Execution(devices, per_call, precision=precision))
            add(name, precision, batch, per_call, devices, repeated(step, state, data, batch))
    for batch in arguments.batch:
        add("evaluate", "float32", batch, 1, 1, evaluated(make_defended(nets), images, batch))
    return rows


def main() -> None:
    """Prints a table, and writes JSON where asked to."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", type=lambda text: text.split(","), default=[default_precision()])
    parser.add_argument("--batch", type=numbers, default=[128], help="images a step, at most 2048")
    parser.add_argument("--steps_per_call", type=numbers, default=[1])
    parser.add_argument("--devices", type=numbers, default=[1])
    parser.add_argument("--width", type=int, default=64, help="of ResNet-18 and U-Net")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a round takes")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if not {*arguments.precision} <= {*PRECISIONS}:
        parser.error(f"--precision: some of {', '.join(PRECISIONS)}")
    rows = measure(arguments)
    if arguments.json:
        results = {"environment": environment.describe(), "width": arguments.width, "rows": rows}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
