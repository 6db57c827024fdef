"""python -m refine_jax.sweep: its flags, what it prints and leaves, and one small sweep for real."""

import json
import shutil

import pytest

from refine_jax import pipeline
from refine_jax.defenses import refine_seeds
from refine_jax.errors import RefineError, SettingError
from refine_jax.sweep import __main__ as sweep
from refine_jax.sweep import plan, together
from refine_jax.sweep.plan import VICTIM_STAGES
from refine_jax.training.interruption import Interrupted
from refine_jax.training.log import read_metrics
from refine_jax.training.loop import Diverged
from tests import small_defense
from tests.sweep.fake import Runs, make

CONFIG = """
from refine_jax import settings
from refine_jax.sweep import Sweep

def get_sweep(variant=""):
    config = settings.default()
    config.dataset.name = "digits"
    return Sweep(config, {"defense.sup_weight": (0.0, 0.1)}, seeds=(0, 1))
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Arguments of a sweep of four runs, whose runs take no time."""
    monkeypatch.setattr(sweep, "keep_compiled", lambda folder: None)
    (tmp_path / "four.py").write_text(CONFIG)
    return [f"--config={tmp_path / 'four.py'}", f"--workdir={tmp_path / 'out'}"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_the_home_directory_may_be_written_as_a_tilde(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pipeline, "run", Runs())
    monkeypatch.chdir(tmp_path)
    assert sweep.main([command[0], "--workdir=~/out"]) == 0
    assert (tmp_path / "home" / "out" / "table.md").exists()
    assert not (tmp_path / "~").exists()


def test_a_sweep_is_listed_run_stopped_gone_on_with_and_retried(command, out, monkeypatch, capsys):
    assert sweep.main([*command, "--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "waiting runs/defense.sup_weight=0.0,seed=0"
    assert said[-1] == "4 runs, 2 shared victims: 6 waiting"
    assert not out.exists()

    monkeypatch.setattr(pipeline, "run", Runs({"sup_weight=0.1,seed=0": Interrupted("stopped after step 3")}))
    with pytest.raises(Interrupted, match="stopped; 2 of 4 runs are done, and the same command goes on"):
        sweep.main(command)
    assert sweep.ended(command) == 75
    assert "2 of 4" in capsys.readouterr().err

    monkeypatch.setattr(pipeline, "run", Runs({"sup_weight=0.1,seed=0": SettingError("a.b", 1, "2")}))
    assert sweep.ended(command) == 2
    told = capsys.readouterr().err
    assert "failed  runs/defense.sup_weight=0.1,seed=0: a.b = 1: allowed: 2" in told
    assert told.rstrip().endswith("error: 1 of 4 runs are not done; --retry tries again")

    again = Runs()
    monkeypatch.setattr(pipeline, "run", again)
    assert sweep.ended(command) == 2
    assert again.done == []
    assert sweep.ended([*command, "--retry"]) == 0
    assert again.done == ["runs/defense.sup_weight=0.1,seed=0"]
    assert "| 0.1 | refine | 2 | 90.00 | 100.00 |" in capsys.readouterr().out
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["figures"]["asr"]["mean"] for row in rows] == [0.0, 0.1]
    assert {path.name for path in out.iterdir()} == {"runs", "victims", "table.md", "table.csv", "table.json"}


def test_one_run_of_a_sweep_is_done_alone_with_its_victim(command, monkeypatch):
    runs = Runs({"seed=1": ValueError("a bug")})
    monkeypatch.setattr(pipeline, "run", runs)
    name = "runs/defense.sup_weight=0.1,seed=0"
    assert sweep.main([*command, f"--run={name}"]) == 0
    assert sweep.main([*command, f"--run={name}"]) == 0
    assert runs.done == ["victims/seed=0", name]
    assert sweep.main([*command, "--run=runs/defense.sup_weight=0.1,seed=1"]) == 1
    with pytest.raises(SettingError, match=r"--run = 'runs/x': allowed: victims/seed=0, "):
        sweep.main([*command, "--run=runs/x"])


def test_results_from_elsewhere_are_a_table_and_nothing_is_done_again(command, out, monkeypatch, capsys):
    with pytest.raises(SettingError, match=r"^--workdir = '[^']*out': allowed: a directory with runs of this sweep"):
        sweep.main([*command, "--table"])
    name, other = (f"runs/defense.sup_weight={weight},seed=0" for weight in (0.1, 0.0))
    monkeypatch.setattr(pipeline, "run", Runs())
    assert sweep.main([*command, f"--run={name}"]) == 0
    shutil.rmtree(out / "victims")
    (out / name / "settings.json").unlink()

    idle = Runs()
    monkeypatch.setattr(pipeline, "run", idle)
    assert sweep.main([*command, f"--run={name}"]) == 0
    capsys.readouterr()
    assert sweep.main([*command, "--table"]) == 2
    said = capsys.readouterr()
    assert "| 0.1 | refine | 1 of 2 | 90.00 | 100.00 | 80.00 |" in said.out
    assert "| 0.0 | - | 0 of 2 |" in said.out
    assert f"waiting {other}" in said.err
    assert said.err.rstrip().endswith("3 of 4 runs are not done; the same command without --table goes on")
    assert (out / "table.md").exists()
    assert idle.done == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.defense.epoch=3"], r"defense.epoch = '3': .*did you mean 'defense.epochs'"),
        (["--config.defense.epochs=x"], r"defense.epochs = 'x': allowed: a whole number"),
        (["--retyr"], r"'--retyr' belongs to no flag"),
        (["--processes=0"], r"--processes = 0: allowed: 1 or more"),
        (["--together", "--processes=2"], r"--together = True: allowed: nothing with --processes, --cluster or --run"),
    ],
)
def test_a_command_line_that_cannot_be_ends_in_a_sentence(command, out, flags, said):
    with pytest.raises(RefineError, match=said):
        sweep.main([*command, *flags])
    assert not out.exists()


def test_a_file_that_gives_no_sweep_is_said_with_its_line(tmp_path, command):
    def main(text):
        (tmp_path / "other.py").write_text(text)
        sweep.main([f"--config={tmp_path / 'other.py'}", command[1]])

    with pytest.raises(RefineError, match=r"other.py, line 2: ZeroDivisionError"):
        main("def get_sweep(variant):\n    return 1 / 0\n")
    with pytest.raises(RefineError, match=r"get_sweep\(\) gives no refine_jax.sweep.Sweep"):
        main("def get_sweep(variant):\n    return 1\n")
    with pytest.raises(SettingError, match=r"config = '.*nine.py': allowed: a file with a get_sweep\(\), such as"):
        sweep.main([f"--config={tmp_path / 'nine.py'}", command[1]])


SMALL = {"victim": ("name=tiny", "epochs=1", "batch_size=32"), "defense": ("epochs=1", "batch_size=32", "width=1")}
FIELDS = [f"--config.{section}.{value}" for section, values in SMALL.items() for value in values]
FIELDS += ["--config.dataset.train_images=64", "--config.defense.depth=1"]


@pytest.fixture
def one_victim(tmp_path, command):
    """Makes it a sweep of two seeds that share a victim."""
    (tmp_path / "four.py").write_text(CONFIG.replace('{"defense.sup_weight": (0.0, 0.1)}', "one_victim=True"))
    with small_defense.registered():
        yield


def test_a_small_sweep_for_real_shares_its_victim(command, one_victim, out):
    assert sweep.main([*command, *FIELDS]) == 0
    (row,) = json.loads((out / "table.json").read_text())["rows"]
    assert row["seeds"] == [0, 1]
    hashes = [json.loads((out / f"runs/seed={seed}/results.json").read_text())["hashes"] for seed in (0, 1)]
    assert hashes[0]["victim"] == hashes[1]["victim"]
    assert hashes[0]["refine"] != hashes[1]["refine"]
    assert [path.name for path in (out / "victims").iterdir()] == ["seed=0"]
    assert not (out / "runs/seed=1/victim").exists()


def test_seeds_that_are_trained_together_leave_ordinary_runs(command, one_victim, out, monkeypatch):
    calls, fit_seeds = [], refine_seeds.fit_seeds

    def interrupted(*arguments, **options):
        calls.append(arguments[3])
        raise Interrupted("stopped")

    monkeypatch.setattr(refine_seeds, "fit_seeds", interrupted)
    with pytest.raises(Interrupted, match="0 of 2 runs are done, and the same command goes on"):
        sweep.main([*command, *FIELDS, "--together"])
    monkeypatch.setattr(refine_seeds, "fit_seeds", lambda *a, **o: calls.append(a[3]) or fit_seeds(*a, **o))
    assert sweep.main([*command, *FIELDS, "--together"]) == 0
    assert calls == [[0, 1], [0, 1]]
    for seed in (0, 1):
        run = out / f"runs/seed={seed}"
        assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1]
        record = json.loads((run / "defense/refine/stage.json").read_text())
        assert (record["settings"]["seed"], record["outcome"]["steps"]) == (seed, 2)
        assert (run / "results.json").exists()
    assert {path.name for path in out.iterdir()} == {"runs", "victims", "table.md", "table.csv", "table.json"}
    # As by themselves: a run of the same seed goes on from nothing, since it is done.
    assert sweep.main([*command, *FIELDS]) == 0


def test_after_an_overwrite_seeds_are_not_gone_on_with_from_the_settings_before(command, one_victim, out, monkeypatch):
    folders = []

    def interrupted(*arguments, folder, **options):
        folder.mkdir(parents=True, exist_ok=True)
        folders.append(folder)
        raise Interrupted("stopped")

    monkeypatch.setattr(refine_seeds, "fit_seeds", interrupted)

    def go_on(*flags):
        with pytest.raises(Interrupted):
            sweep.main([*command, *FIELDS, "--together", *flags])
        return folders[-1]

    first = go_on()
    (out / "together" / "seed=0+1").mkdir()  # as the first versions named it
    (out / "together" / "seed=2+3-abc").mkdir()
    assert go_on() == first
    second = go_on("--overwrite", "--config.defense.learning_rate=0.5")
    assert second != first
    assert {path.name for path in (out / "together").iterdir()} == {second.name, "seed=2+3-abc"}


def test_seeds_that_cannot_be_trained_together_are_trained_one_by_one(command, one_victim, out, monkeypatch, caplog):
    def diverged(*arguments, **options):
        raise Diverged("the loss is nan")

    monkeypatch.setattr(refine_seeds, "fit_seeds", diverged)
    runs = Runs()
    real = pipeline.run
    monkeypatch.setattr(pipeline, "run", lambda c, w, s, **o: (real if s == VICTIM_STAGES else runs)(c, w, s, **o))
    with caplog.at_level("WARNING", "refine_jax"):
        assert sweep.main([*command, *FIELDS, "--together"]) == 0
    assert runs.done == ["runs/seed=0", "runs/seed=1"]
    assert "runs/seed=0 and others are trained one by one, since together: error: the loss is nan" in caplog.text


def test_only_seeds_of_one_victim_and_equal_settings_are_trained_together(tmp_path):
    grid = {"defense.sup_weight": (0.0, 0.1)}

    def groups(*given, **options):
        found = together.groups_of(plan.expand(make(*given, **options), tmp_path).runs)
        return [[(task.values["defense.sup_weight"], task.seed) for task in group] for group in found]

    expected = [[(0.0, 0), (0.0, 1)], [(0.1, 0), (0.1, 1)]]
    assert groups(grid, one_victim=True) == expected
    assert groups(grid) == []
    assert groups({**grid, "defense.names": (("shrinkpad",),)}, one_victim=True) == []
