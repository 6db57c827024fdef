"""Files of a working directory, damaged at random: each is read as it was written, or refused in a sentence."""

import json
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_jax import attacks, evaluate_stage
from refine_jax.attacks import kept
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays, read_record, write_record
from refine_jax.workdir import SCHEMA, Record, Workdir

FIGURES = {"ba": 0.9, "counts": {"ba": [9, 10]}, "ci95": {"ba": [0.6, 0.98]}}
SETTINGS = {"defense": {"names": []}}
RESULTS = {"schema": 1, "settings": SETTINGS, "hashes": {"victim": "abc"}, "no_defense": FIGURES}
RESULTS |= {"defenses": {"refine": FIGURES}}
MADE_FROM = {"seed": 0, "victim": {"name": "resnet18", "milestones": [0.5, 0.75]}}

# Where, how many bytes go, and what comes in their place.
changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=20)), min_size=1, max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fuzzed = settings(max_examples=100, deadline=None, database=None)


def changed(content, places):
    for place, count, new in places:
        start = int(place * len(content))
        content = content[:start] + new + content[start + count :]
    return content


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working directory with a stage that is done, an attack, and results."""
    work = Workdir(tmp_path_factory.mktemp("work"))
    Record(work.victim, MADE_FROM).finish({"victim_sha256": "abc", "steps": 7})
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 16, 16, 3), np.uint8), np.arange(30, dtype=np.int32) % 3
    attack = attacks.build("badnets", 16)
    kept.save(work.attack, attack, attack.poison(images, labels, jax.random.key(0)))
    write_record(work.results, RESULTS)
    return work


def read_stage(work):
    record = Record(work.victim, MADE_FROM)
    record.admit("victim", overwrite=False)
    return record.outcome


def read_attack(work):
    found = kept.load(work.attack)
    return hash_arrays({"arrays": found.attack.arrays, "indices": found.indices}), found.attack.target, found.sha256


def read_results(work):
    return evaluate_stage.find_results(types.SimpleNamespace(work=work, defenses={}, settings=SETTINGS))


READERS = {
    "victim/stage.json": read_stage,
    "attack/attack.json": read_attack,
    "attack/arrays.npz": read_attack,
    "results.json": read_results,
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_says_what_it_said(work, name, monkeypatch):
    monkeypatch.setattr(evaluate_stage, "hashes_of", lambda run: {"victim": "abc"})
    path, read = work.root / name, READERS[name]
    whole, said = path.read_bytes(), read(work)
    refused = []

    @fuzzed
    @given(changes)
    def check(places):
        path.write_bytes(changed(whole, places))
        try:
            found = read(work)
        except WorkdirError as error:
            refused.append(str(error))
        else:
            assert found in (said, None)
            refused.extend(["measured anew"] if found is None else [])  # results.json

    try:
        check()
    finally:
        path.write_bytes(whole)
    assert len(refused) > 50
    assert not any("\n" in sentence for sentence in refused)


@fuzzed
@given(st.sampled_from(["schema", "settings", "outcome", "more"]), values)
def test_a_record_without_a_checksum_is_refused_in_a_sentence_too(tmp_path_factory, field, value):
    folder = tmp_path_factory.mktemp("stage")
    Record(folder, MADE_FROM).finish({"victim_sha256": "abc"})
    content = read_record(folder / "stage.json", ()) | {field: value}
    (folder / "stage.json").write_text(json.dumps(content))
    try:
        record = Record(folder, MADE_FROM)
        record.admit("victim", overwrite=False)
    except WorkdirError:
        return
    assert field == "outcome" or value == SCHEMA
    assert field != "outcome" or record.outcome == value


def test_a_file_that_cannot_be_read_is_named(work, tmp_path):
    (tmp_path / "stage.json").mkdir()
    with pytest.raises(WorkdirError, match=r"stage\.json cannot be read: Is a directory"):
        Record(tmp_path, MADE_FROM)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(WorkdirError, match=r"deep\.json is damaged"):
        read_record(tmp_path / "deep.json", ())
