"""Peak memory and time of one training step on large images, with and without rematerialization.

    python -m benchmarks.memory [--network imagenet_resnet18] [--size 224] [--batch 8] [--steps 1] [--json FILE]

Victim and defense have the widths of configs/imagenet50.py, 50 classes, random weights and random images that come
with the batch, as streamed ones do. Each case runs in a process of its own. Printed are
- kept: what the network that is trained, and the victim behind it, keep of the way forward for the gradient;
- planned: the memory that XLA plans for a step beside what it is given;
- peak: while a step runs; on a CPU of the whole process, with the program and the compiler's leavings, on a GPU of its
  memory;
- images/s of the steps after the first.
With --kept nothing is compiled or run, and only the first is printed.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import environment, networks, victim
from refine_jax.classifier import Classifier
from refine_jax.defenses import mapping, refine
from refine_jax.networks.unet import UNet
from refine_jax.training import optimizer
from refine_jax.training.compilation import compile_training
from refine_jax.training.state import create_train_state

K, UNET_WIDTH = 50, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (state, data, batch) -> (state, metrics); (parameters, images) -> loss, without augmentation; the state; the data.
Case = tuple[Callable, Callable, Any, Any]


def victim_case(network: str, size: int, *, remat: bool, width: int | None) -> Case:
    """One step of the victim's training, with what it begins with."""
    module = networks.build(network, K, **_options(width), **({"remat": True} if remat else {}))
    settings = {**optimizer.DEFAULTS, "learning_rate": 0.1, "decay": 0.1}
    tx = optimizer.create_optimizer(settings, optimizer.create_schedule(settings, 1))
    state = create_train_state(module, tx, jax.random.key(0), (size, size))
    data = {
        "labels": jnp.arange(1024) % K,
        "is_poisoned": jnp.zeros(1024, bool),
        "mean": jnp.asarray(MEAN),
        "std": jnp.asarray(STD),
        "key": jax.random.key(1),
    }

    def loss(params, images):
        variables = {"params": params, "batch_stats": state.batch_stats}
        return module.apply(variables, images, train=True, mutable=["batch_stats"])[0].mean()

    return victim.train_step(module, tx, lambda images, *_: images), loss, state, data


def refine_case(network: str, size: int, *, remat: bool, width: int | None) -> Case:
    """One step of the U-Net's training, with what it begins with."""
    module = networks.build(network, K, **_options(width))
    init = jax.jit(module.init, compiler_options={"xla_backend_optimization_level": 0})
    variables = init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    classifier = Classifier(network, variables, K, MEAN, STD, options=_options(width))
    settings = refine.complete({})
    unet = UNet(width=width or UNET_WIDTH, remat=remat)
    tx = optimizer.create_optimizer(settings, optimizer.create_schedule(settings, 1))
    state = create_train_state(unet, tx, jax.random.key(1), (size, size))
    data = {
        "classifier": classifier.rematerialized() if remat else classifier,
        "permutation": mapping.derangement(jax.random.key(2), K),
        "key": jax.random.key(3),
    }

    def loss(params, images):
        variables = {"params": params, "batch_stats": state.batch_stats}
        return refine.objective(unet, variables, data["classifier"], images, data["permutation"], settings)[0]

    return refine.train_step(unet, tx, refine.Objective.of(settings)), loss, state, data


def _options(width: int | None) -> dict[str, int]:
    return {} if width is None else {"width": width}


CASES = {"victim": victim_case, "refine": refine_case}


def random_batch(batch: int, size: int) -> dict[str, np.ndarray]:
    """Images as a stream brings them."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    return {"indices": np.arange(batch, dtype=np.int32), "images": images}


def measure(
    name: str, network: str, size: int, batch: int, steps: int, *, remat: bool, width: int | None = None
) -> dict[str, Any]:
    """Runs a case in this process: one step for the peak, and `steps` more for the time."""
    function, loss, state, data = CASES[name](network, size, remat=remat, width=width)
    images = random_batch(batch, size)
    kept = kept_bytes(loss, state.params, images["images"])
    if not steps:
        return {"case": name, "remat": remat, "kept_bytes": kept}
    step = compile_training(function, donate_argnums=0).lower(state, data, images).compile()
    plan = step.memory_analysis()
    _forget_peak()
    state, metrics = step(state, data, images)
    jax.block_until_ready((state, metrics))
    peak = _peak()
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, data, images)
    jax.block_until_ready((state, metrics))
    speed = steps * batch / (time.perf_counter() - start)
    return {
        **{"case": name, "remat": remat, "kept_bytes": kept, "planned_bytes": plan.temp_size_in_bytes},
        **{"peak_bytes": peak, "images_per_second": speed, "loss": float(metrics["loss"])},
    }


def kept_bytes(loss: Callable, params: Any, images: np.ndarray) -> int:
    """Returns what is kept for the gradient of a loss beside the parameters, without computing anything."""
    given = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    backward = jax.eval_shape(lambda params, images: jax.vjp(loss, params, images)[1], params, given)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
    return kept - sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def _forget_peak() -> None:
    """Makes what the process takes now the peak, on a CPU; on a GPU nothing of note was computed before."""
    if jax.default_backend() == "cpu":
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="imagenet_resnet18", choices=networks.names())
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed, after the first")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    parser.add_argument("--case", choices=CASES, help="run this one alone and print its figures as JSON")
    parser.add_argument("--remat", action="store_true", help="with --case: rematerialized")
    parser.add_argument("--kept", action="store_true", help="print what is kept for the gradient alone")
    arguments = parser.parse_args()
    given = (arguments.network, arguments.size, arguments.batch, 0 if arguments.kept else arguments.steps)
    if arguments.case:
        print(json.dumps(measure(arguments.case, *given, remat=arguments.remat)))
        return

    results: dict[str, Any] = {"environment": environment.describe(), "cases": []}
    results |= dict(zip(("network", "size", "batch", "steps"), given, strict=True))
    flags = [f"--{name}={results[name]}" for name in ("network", "size", "batch", "steps")]
    sizes = ("kept",) if arguments.kept else ("kept", "planned", "peak")
    print(f"{'step':8}{'remat':>7}" + "".join(f"{name:>12}" for name in (*sizes, "images/s")))
    for name in CASES:
        for remat in (False, True):
            command = [sys.executable, "-m", "benchmarks.memory", f"--case={name}", *flags]
            run = subprocess.run(command + ["--remat"] * remat, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(run.stdout.splitlines()[-1])
            shown = [f"{row[f'{size}_bytes'] / 1e9:.3f} GB" for size in sizes]
            shown.append(f"{row['images_per_second']:.2f}" if "images_per_second" in row else "")
            print(f"{name:8}{remat!s:>7}" + "".join(f"{text:>12}" for text in shown), flush=True)
            results["cases"].append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
