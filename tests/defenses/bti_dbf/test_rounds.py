"""A run with BTI-DBF that is measured after fewer rounds, too."""

import pytest

from refine_jax import pipeline
from refine_jax.errors import WorkdirError
from refine_jax.files import read_record
from refine_jax.training import compilation
from tests.defenses.bti_dbf import small
from tests.defenses.bti_dbf.small import net_fixture  # noqa: F401
from tests.small_run import config, tiny_fixture  # noqa: F401


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_options", lambda backend: small.QUICK)


def test_each_number_of_rounds_is_measured_of_one_fit(tmp_path, tiny, net):
    made = config(defense__names=("bti_dbf_p",), victim__name="net")
    own = made.defense.bti_dbf_p
    own.rounds, own.sweep, own.width, own.depth, own.batch_size, own.data_fraction = 2, (1,), 2, 1, 32, 1.0
    for name in own:
        if name.endswith("epochs"):
            own[name] = 1
    found = pipeline.run(made, str(tmp_path))["defenses"]["bti_dbf_p"]
    one, two = found["sweep"]
    assert (one["settings"]["rounds"], one["chosen"]) == (1, False)
    assert (two["settings"]["rounds"], two["chosen"]) == (2, True)
    assert two["counts"] == found["counts"]
    assert one["w1"] != two["w1"]  # another purifier, though it may come to the same answers
    assert one["counts"]["ba"][1] == len(tiny.test)

    # What a checkpoint has come to on its way has no hash: the last of every phase is noted, and has to be there.
    folder = tmp_path / "defense" / "bti_dbf_p"
    parts = read_record(folder / "stage.json", ())["outcome"]["parts"]
    names = ["pretraining", *(f"{name}{n}" for n in (1, 2) for name in ("mask", "inversion", "purification"))]
    assert [*parts] == [f"{name}/checkpoints" for name in names]
    last = folder / "checkpoints" / "purification1" / "checkpoints" / str(parts["purification1/checkpoints"])
    last.rename(last.with_name("1"))  # as where an earlier one is the newest that is left
    (tmp_path / "results.json").unlink()
    with pytest.raises(WorkdirError, match=rf"{last} is missing: stage 'defend' trains it again"):
        pipeline.run(made, str(tmp_path), ["evaluate"])
