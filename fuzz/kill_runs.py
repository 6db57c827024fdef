"""Kills a run at random moments (kill -9), takes it up again each time, and compares it with one that was left alone.

    python fuzz/kill_runs.py --kills 20 --seed 0 --folder /tmp/kills

The run is the demo made small: both trainings, the evaluation, the export. It prints where each kill came, and ends
with status 1 where anything differs: the parameters, results.json but for times, or metrics.jsonl with a step twice or
missing.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]

SMALL = (
    *("--config=configs/digits.py", "--config.run.log_every=1", "--config.run.checkpoint_steps=2"),
    *("--config.dataset.train_images=256", "--config.victim.width=2", "--config.defense.width=2"),
    *("--config.victim.epochs=6", "--config.defense.epochs=6", "--config.defense.depth=1"),
)
# What the clock has a say in; a checksum is also of that.
TIMES = ("train_seconds", "train_images_per_second", "milliseconds_per_image", "file_sha256")


def start(work: pathlib.Path, flags: Sequence[str] = SMALL) -> subprocess.Popen:
    """Starts the run; the programs it compiles are kept beside `work`, for the next start."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(work.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "launch.py", *flags, f"--workdir={work}"]
    with (work.parent / f"{work.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **kept}, stdout=log, stderr=log)


def run(work: pathlib.Path, flags: Sequence[str] = SMALL, kill_after: float | None = None) -> float | None:
    """Starts the run, and kills it or lets it come to its end.

    Args:
        work: Its working directory.
        flags: Of launch.py.
        kill_after: Seconds after it has come to work, its modules imported; None: it is not killed.

    Returns:
        The seconds that it worked where it came to its end; None where it was killed before.
    """
    process = start(work, flags)
    while process.poll() is None and owner(work) != process.pid:
        time.sleep(0.01)
    started = time.monotonic()
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None
    if process.returncode:
        raise SystemExit(f"status {process.returncode}: see {work}.log")
    return time.monotonic() - started


def owner(work: pathlib.Path) -> int | None:
    """Returns which process holds the working directory."""
    try:
        return json.loads((work / "lock").read_text())["pid"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def compare(folder: pathlib.Path, kills: int, rng: random.Random, flags: Sequence[str] = SMALL) -> list[str]:
    """Kills runs until there were so many kills, and compares each that came to its end with one left alone.

    Args:
        folder: Of the working directories: 'whole', and one for each time that a run came to its end.
        kills: How often.
        rng: Draws the moments, spread evenly over the time that a run works.
        flags: Of launch.py.

    Returns:
        What differs; empty where nothing does.
    """
    whole, found, different, ends = folder / "whole", 0, [], 0
    run(whole, flags)
    seconds = run(folder / "warm", flags)  # nothing is compiled any more
    print(f"a run works for {seconds:.1f} s", flush=True)
    while True:
        work = folder / f"killed{ends}"
        moment = rng.uniform(0, seconds) if found < kills else None
        if run(work, flags, moment) is None:
            found += 1
            print(f"kill {found} in {work.name} after {moment:.1f} s: {describe(work)}", flush=True)
            continue
        different += [f"{work.name}: {difference}" for difference in differences(whole, work)]
        ends += 1
        if found == kills:
            return different


def describe(work: pathlib.Path) -> str:
    """Returns which steps there are of which training, and what else is there."""
    steps = {}
    for row in rows(work):
        steps[row["stage"]] = row["step"]
    there = [name for name in ("lock", "results.json", "export") if (work / name).exists()]
    return ", ".join([*(f"{stage} at step {step}" for stage, step in steps.items()), *there]) or "nothing yet"


def rows(work: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl without their times; a last line that a kill has cut is none."""
    found = []
    text = (work / "metrics.jsonl").read_text() if (work / "metrics.jsonl").exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append({name: value for name, value in row.items() if name != "time"})
    return found


def figures(work: pathlib.Path) -> dict:
    """What results.json holds, but for what the clock has a say in; hashes of all parameters are in it."""

    def without_times(value):
        if isinstance(value, dict):
            return {name: without_times(child) for name, child in value.items() if name not in TIMES}
        return value

    return without_times(json.loads((work / "results.json").read_text()))


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns what differs between two runs that came to their ends."""
    found = [] if figures(one) == figures(other) else ["results.json"]
    if rows(one) != rows(other):
        found.append("metrics.jsonl")
    if len({(row["stage"], row["step"]) for row in rows(other)}) != len(rows(other)):
        found.append("a step stands twice in metrics.jsonl")
    left = [str(path.relative_to(other)) for path in other.rglob("*") if "tmp" in path.name or path.name == "lock"]
    return found + [f"{path} was left" for path in left]


def main() -> int:
    """Runs the comparison and prints what came of it; returns 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="new; keeps both runs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    different = compare(options.folder, options.kills, random.Random(options.seed))
    print("; ".join(different) or f"{options.kills} kills: parameters, results.json and metrics.jsonl are the same")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
