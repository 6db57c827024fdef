"""Fuzzes refine_jax.interop.torch_file.load with mutations of valid files.

    python fuzz/fuzz_torch_file.py --runs 200000 --seed 0
    python fuzz/fuzz_torch_file.py --atheris -max_total_time=600 [CORPUS]       (where atheris is installed)

An input fails where loading raises anything but TorchFileError, takes more memory or time than promised (memory is
limited for all and measured for one in eight, since measuring is slow), imports, compiles, runs or opens something,
or returns an array that cannot be read. Failing inputs are left in the folder
--keep, with their error.
"""

import argparse
import collections
import contextlib
import functools
import pathlib
import random
import resource
import sys
import tempfile
import time
import traceback
import tracemalloc
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

# libFuzzer learns of what is reached in the reader alone, not in all of Python.
with contextlib.ExitStack() as instrumented:
    if "--atheris" in sys.argv:
        import atheris

        instrumented.enter_context(atheris.instrument_imports(include=["refine_jax.interop"]))
    from refine_jax.interop import torch_file
from tests.interop import torch_files  # noqa: E402

SECONDS = 5.0
# What a byte of a file may cost, its most expensive opcodes being empty containers; and what every load costs.
MEMORY_PER_BYTE = 512
MEMORY = 1 << 20
MEASURED = 8
MEMORY_LIMIT = 256 << 20
FORBIDDEN = ("import", "exec", "compile", "marshal.", "os.", "subprocess.", "socket.", "ctypes.", "pickle.", "shutil.")
SNIPPETS = [
    *(torch_files.named(*name.rsplit(".", 1)) for name in (
        "os.system", "builtins.eval", "builtins.getattr", "torch.FloatStorage", "torch.float16", "torch.Size",
        "torch.storage.UntypedStorage", "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2", "torch.Tensor", "torch.device",
        "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.set", "builtins.complex",
        "numpy.dtype", "numpy.ndarray", "numpy._core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    )),
    torch_files.storage(), torch_files.tensor((2, 3), (3, 1)), torch_files.string("latin1"), torch_files.string("f4"),
    *(bytes([code]) for code in b"()]}.0123aNRQbdelostu\x81\x85\x86\x87\x88\x89\x8f\x90\x93\x94"),
    *(torch_files.integer(value) for value in (-1, 0, 1, 6, 1 << 31, (1 << 63) - 1, 1 << 64, 1 << 2000)),
    b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff",
]  # fmt: skip


def corpus() -> list[bytes]:
    """Returns valid files of every format."""
    files = sorted((ROOT / "tests" / "goldens" / "torch_files").iterdir())
    return [path.read_bytes() for path in files] + [torch_files.tar()]


def found() -> list[bytes]:
    """Returns inputs that have led libFuzzer to something new in the reader, the small ones among them."""
    with zipfile.ZipFile(ROOT / "fuzz" / "corpus.zip") as archive:
        return [archive.read(name) for name in archive.namelist()]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Returns a file, changed somewhere; an archive mostly within an entry, and packed again."""
    if data.startswith(b"PK") and rng.random() < 0.8:
        entries = dict(_unpacked(data))
        name = next(name for name in entries if name.endswith("data.pkl"))
        name = name if rng.random() < 0.9 else rng.choice(list(entries))
        entries[name] = mutate_bytes(rng, entries[name])
        return torch_files.packed(entries)
    return mutate_bytes(rng, data)


_unpacked = functools.lru_cache(64)(torch_files.unpacked)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Returns bytes with one to six changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        place = rng.randrange(len(data) + 1)
        length = rng.choice((0, 0, 1, 1, 2, 4, 8, rng.randrange(1 + len(data))))
        cut = data[place : place + length]
        new = rng.choice(
            (
                b"",
                bytes([rng.randrange(256)]),
                bytes(rng.randrange(256) for _ in range(len(cut))),
                rng.choice((b"\0", b"\xff", b"\x7f", b"(", b"]", b"}")) * rng.choice((1, 4, 8, 300)),
                cut * 2,
                rng.choice(SNIPPETS),
                rng.choice(SNIPPETS) + rng.choice(SNIPPETS),
            )
        )
        data = data[:place] + new + data[place + length :]
    return data


class Watch:
    """Loads inputs, and notices what loading does besides.

    Args:
        folder: Where each input is written before it is loaded.
    """

    def __init__(self, folder: pathlib.Path):
        self._path = folder / "input.pth"
        self._armed, self._loads = False, 0
        self._events: list[str] = []
        torch_file.load(ROOT / "tests/goldens/torch_files/backdoorbench.pt")  # What NumPy imports late.
        sys.addaudithook(self._audit)

    def load(self, data: bytes) -> str:
        """Returns 'loaded', or the beginning of the error's sentence.

        Raises:
            Exception: Whatever must not happen.
        """
        self._path.write_bytes(data)
        self._events.clear()
        self._loads += 1
        if measured := self._loads % MEASURED == 0:
            tracemalloc.start()
        started = time.perf_counter()
        try:
            self._armed = True
            value = torch_file.load(self._path)
            outcome = "loaded"
        except torch_file.TorchFileError as error:
            value, outcome = None, " ".join(str(error).removeprefix(str(self._path)).split()[:4])
        finally:
            self._armed = False
            memory = tracemalloc.get_traced_memory()[1] if measured else 0
            tracemalloc.stop()
        seconds = time.perf_counter() - started
        assert not self._events, f"did {self._events}"
        assert seconds < SECONDS, f"took {seconds:.1f} s"
        assert memory < MEMORY + MEMORY_PER_BYTE * len(data), f"took {memory} bytes for {len(data)}"
        read(value)
        return outcome

    def _audit(self, event: str, arguments: tuple) -> None:
        if self._armed and (event.startswith(FORBIDDEN) or (event == "open" and str(arguments[0]) != str(self._path))):
            self._events.append(f"{event} {arguments!r:.200}")


def read(value) -> None:
    """Reads every number of every array."""
    if isinstance(value, np.ndarray):
        assert np.array(value).shape == value.shape
    elif isinstance(value, dict | list | tuple):
        for child in value.values() if isinstance(value, dict) else value:
            read(child)


def limit_memory() -> None:
    """Lets this process take `MEMORY_LIMIT` more than it has."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def guided(watch: Watch, folder: pathlib.Path, arguments: list[str]) -> None:
    """Hands inputs to libFuzzer, which does not come back.

    Args:
        watch: Loads them.
        folder: Where the files are laid that it starts from.
        arguments: Its own; a folder among them, where it keeps what has led to something new, comes first.
    """
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, data in enumerate(corpus() + found()):
        (seeds / str(number)).write_bytes(data)

    def change(data: bytes, size: int, seed: int) -> bytes:
        # Half of the changes are its own; it does not know of archives and their checksums.
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, size)
        try:
            return mutate(rng, data)[:size]
        except Exception:  # an archive that zipfile cannot read any more
            return mutate_bytes(rng, data)[:size]

    atheris.Setup([sys.argv[0], *arguments, str(seeds)], lambda data: watch.load(data) and None, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    """Runs the fuzzer and prints what it found; returns the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for inputs that fail")
    parser.add_argument("--atheris", action="store_true", help="what follows goes to libFuzzer")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(pathlib.Path(folder))
        if options.atheris:
            guided(watch, pathlib.Path(folder), rest)
        limit_memory()
        rng, files = random.Random(options.seed), corpus()
        outcomes: collections.Counter[str] = collections.Counter()
        failures = 0
        for run in range(options.runs):
            if run and run % 20_000 == 0:
                print(f"{run} inputs, {failures} failures", flush=True)
            data = mutate(rng, rng.choice(files))
            try:
                outcomes[watch.load(data)] += 1
            except Exception:
                failures += 1
                print(f"run {run}:\n{traceback.format_exc()}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{options.seed}_{run}.pth").write_bytes(data)
        print(f"{options.runs} inputs, {failures} failures, {outcomes['loaded']} loaded; the most frequent errors:")
        for outcome, count in outcomes.most_common(40):
            print(f"{count:8} {outcome}")
    return failures


if __name__ == "__main__":
    sys.exit(min(main(), 1))
