"""Seconds until a run does its work: importing, and the first training step, compiled and from the cache.

    python -m benchmarks.startup [--width 64] [--batch 128] [--rounds 3] [--json FILE]

Every figure is of processes of their own, the median of some. "import refine_jax" has "import jax" in it. "first step"
is from the start of the process to the end of the first step of the victim's training, or of REFINE's, with an empty
cache of compiled programs (cold) and with the one that this has left (warm).
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from refine_jax import environment


def first_step(name: str, width: int, batch: int, cache: pathlib.Path) -> None:
    """Takes one step; what the processes run that are timed."""
    import numpy as np

    from benchmarks import step as steps
    from refine_jax.training.compilation import keep_compiled
    from refine_jax.training.parallel import Execution, default_precision

    keep_compiled(cache)
    images = np.zeros((steps.POOL, steps.SIDE, steps.SIDE, 3), np.uint8)
    make = {"victim": steps.make_victim, "refine": steps.make_refine}[name]
    execution = Execution(steps_per_call=None, precision=default_precision())
    steps.repeated(*make(steps.Networks.of_width(width), images, execution), batch)(1)


def seconds(code: str) -> tuple[float, float]:
    """Runs code in a process of its own; returns its wall time and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    # Its cache is the one that is measured, and no other.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    subprocess.run([sys.executable, "-c", code], check=True, env=kept)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of ResNet-18 and U-Net")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()

    def step(name: str, cache: str) -> str:
        given = f"{name!r}, {arguments.width}, {arguments.batch}, pathlib.Path({cache!r})"
        return f"import pathlib; from benchmarks.startup import first_step; first_step({given})"

    codes = {"import jax": ["import jax"], "import refine_jax": ["import refine_jax"]}
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in ("victim", "refine"):
                codes[f"first step of {name}"] = [step(name, cache)] * 2
            for name, runs in codes.items():
                for kind, code in zip(("cold", "warm"), runs, strict=False):
                    label = name if len(runs) == 1 else f"{name}, {kind}"
                    times.setdefault(label, []).append(seconds(code))
    print(f"{'':32}{'seconds':>9}{'of processor':>14}")
    results = {}
    for label, pairs in times.items():
        wall, processor = (statistics.median(values) for values in zip(*pairs, strict=True))
        results[label] = {"seconds": wall, "processor_seconds": processor}
        print(f"{label:32}{wall:9.2f}{processor:14.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment.describe(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
