"""Changed files load or end in the one error. fuzz/fuzz_torch_file.py does the same for longer, and watches more."""

import random
import tracemalloc

import hypothesis
import pytest
from hypothesis import strategies as st

from fuzz import fuzz_torch_file
from refine_jax.interop import torch_file
from tests.interop import torch_files

FILES = fuzz_torch_file.corpus()
# Where a change begins and how many bytes it takes, as shares of the file, and what stands there instead.
NEW = st.one_of(st.binary(max_size=6), st.sampled_from(fuzz_torch_file.SNIPPETS))
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), NEW), min_size=1, max_size=4)


def changed(data, changes):
    for start, length, new in changes:
        place = int(start * len(data))
        data = data[:place] + new + data[place + length :]
    return data


def loads_or_refuses(path, data):
    path.write_bytes(data)
    try:
        fuzz_torch_file.read(torch_file.load(path))
        message = str(path)
    except torch_file.TorchFileError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert message.isprintable()


def test_what_libfuzzer_has_found(tmp_path):
    inputs = fuzz_torch_file.found()
    assert len(inputs) > 100
    for data in inputs:
        loads_or_refuses(tmp_path / "found.pth", data)


@hypothesis.settings(max_examples=800, deadline=None)
@hypothesis.given(data=st.sampled_from(FILES), changes=CHANGES)
def test_changed_files(tmp_path_factory, data, changes):
    loads_or_refuses(tmp_path_factory.getbasetemp() / "changed.pth", changed(data, changes))


@hypothesis.settings(max_examples=800, deadline=None)
@hypothesis.given(data=st.sampled_from([data for data in FILES if data.startswith(b"PK")]), changes=CHANGES)
def test_archives_of_changed_pickles(tmp_path_factory, data, changes):
    entries = torch_files.unpacked(data)
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[name] = changed(entries[name], changes)
    loads_or_refuses(tmp_path_factory.getbasetemp() / "changed.pth", torch_files.packed(entries))


@pytest.mark.parametrize("seed", range(2))
def test_memory_is_in_proportion_to_the_file(tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(100):
        data = fuzz_torch_file.mutate(rng, rng.choice(FILES))
        tracemalloc.start()
        try:
            loads_or_refuses(tmp_path / "changed.pth", data)
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert taken < fuzz_torch_file.MEMORY + fuzz_torch_file.MEMORY_PER_BYTE * len(data)
