import json
import os
import pathlib

import pytest

from refine_jax.errors import WorkdirError
from refine_jax.files import read_record, write_record
from refine_jax.workdir import SCHEMA, Record, Workdir

SETTINGS = {"seed": 0, "victim": {"epochs": 3}}
CHANGED = {"seed": 1, "victim": {"epochs": 3}}


def done(folder, settings=SETTINGS):
    """A stage that came to its end."""
    record = Record(folder, settings)
    record.admit("victim", overwrite=False)
    record.begin()
    (folder / "weights").write_text("w")
    record.finish({"hash": "abc"})
    return record


def test_where_things_lie(tmp_path):
    work = Workdir(tmp_path / "run")
    found = (work.settings, work.metrics, work.results, work.attack, work.victim, work.defense("refine"))
    names = ("settings.json", "metrics.jsonl", "results.json", "attack", "victim", "defense/refine")
    assert found == tuple(tmp_path / "run" / name for name in names)
    assert not work.root.exists()


def test_the_home_directory_may_be_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workdir("~/run").root == tmp_path / "run"


def test_a_directory_is_made_with_its_parents_and_left_clean(tmp_path):
    work = Workdir(tmp_path / "a" / "b")
    work.create()
    work.create()
    assert list(work.root.iterdir()) == []


def test_a_file_is_no_working_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match=r"file is a file: name a directory"):
        Workdir(tmp_path / "file")
    with pytest.raises(WorkdirError, match=r"file/sub cannot be written to: Not a directory"):
        Workdir(tmp_path / "file" / "sub").create()


def test_a_name_that_no_file_system_takes_is_refused():
    with pytest.raises(WorkdirError, match=r"a cannot be: File name too long"):
        Workdir("a" * 5000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WorkdirError, match="cannot be written to: Permission denied"):
        Workdir(tmp_path).create()


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pathlib.Path, "touch", refuse)
    with pytest.raises(WorkdirError, match="cannot be written to: No space left on device"):
        Workdir(tmp_path).create()


def test_clearing_deletes_what_was_made_from_the_victim_and_nothing_else(tmp_path):
    work = Workdir(tmp_path)
    for folder in (work.attack, work.defense("refine"), work.victim):
        folder.mkdir(parents=True)
        (folder / "something").write_text("")
    for file in (work.results, work.metrics, tmp_path / "notes.txt"):
        file.write_text("")
    work.clear()
    work.clear()  # also where there is nothing left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "victim"]


def test_a_stage_that_is_not_begun_has_no_outcome_and_is_admitted(tmp_path):
    record = Record(tmp_path / "victim", SETTINGS)
    assert record.outcome is None
    assert record.admit("victim", overwrite=False) is False
    assert not (tmp_path / "victim").exists()


def test_a_stage_that_was_cut_short_is_known_but_not_done(tmp_path):
    Record(tmp_path / "victim", SETTINGS).begin()
    again = Record(tmp_path / "victim", SETTINGS)
    assert again.outcome is None
    assert again.admit("victim", overwrite=False) is False
    with pytest.raises(WorkdirError, match="seed: 0 -> 1"):
        Record(tmp_path / "victim", CHANGED).admit("victim", overwrite=False)


def test_a_stage_that_is_done_stays_done(tmp_path):
    done(tmp_path / "victim")
    again = Record(tmp_path / "victim", SETTINGS)
    again.admit("victim", overwrite=False)
    again.begin()
    assert again.outcome == {"hash": "abc"}
    assert Record(tmp_path / "victim", SETTINGS).outcome == {"hash": "abc"}


def test_other_settings_are_refused_by_name_and_nothing_is_deleted(tmp_path):
    done(tmp_path / "victim")
    changed = {"seed": 1, "victim": {"epochs": 4, "width": 8}}
    with pytest.raises(WorkdirError) as caught:
        Record(tmp_path / "victim", changed).admit("victim", overwrite=False)
    message = str(caught.value)
    assert "stage 'victim'" in message
    assert "seed: 0 -> 1; victim.epochs: 3 -> 4; victim.width: not there -> 8" in message
    assert "--overwrite" in message
    assert (tmp_path / "victim" / "weights").exists()


def test_overwriting_deletes_the_stage_alone(tmp_path):
    done(tmp_path / "victim")
    done(tmp_path / "other")
    record = Record(tmp_path / "victim", CHANGED)
    assert record.admit("victim", overwrite=True) is True
    assert (tmp_path / "victim" / "weights").exists()  # until what was made from it is gone
    record.delete()
    assert record.outcome is None
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert Record(tmp_path / "other", SETTINGS).outcome == {"hash": "abc"}


def test_overwriting_leaves_a_stage_of_the_same_settings_alone(tmp_path):
    done(tmp_path / "victim")
    assert Record(tmp_path / "victim", SETTINGS).admit("victim", overwrite=True) is False
    assert Record(tmp_path / "victim", SETTINGS).outcome == {"hash": "abc"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_elses_is_never_touched(tmp_path, overwrite):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.tex").write_text("")
    with pytest.raises(WorkdirError, match=r"victim has no stage\.json, .*move it away"):
        Record(tmp_path / "victim", SETTINGS).admit("victim", overwrite=overwrite)
    assert (tmp_path / "victim" / "thesis.tex").exists()


def test_a_setting_that_makes_no_difference_is_taken_from_the_record(tmp_path):
    done(tmp_path / "victim")
    record = Record(tmp_path / "victim", CHANGED)
    record.adopt("seed")
    assert record.settings == SETTINGS
    assert record.admit("victim", overwrite=False) is False
    fresh = Record(tmp_path / "none", CHANGED)
    fresh.adopt("seed")
    assert fresh.settings == CHANGED


def test_another_schema_is_refused(tmp_path):
    done(tmp_path / "victim")
    path = tmp_path / "victim" / "stage.json"
    kept = read_record(path, ())
    assert kept["schema"] == SCHEMA
    write_record(path, {**kept, "schema": 0})
    with pytest.raises(WorkdirError, match=f"schema: 0 -> {SCHEMA}"):
        Record(tmp_path / "victim", SETTINGS).admit("victim", overwrite=False)


def test_a_record_of_the_first_versions_which_has_no_checksum_is_read(tmp_path):
    done(tmp_path / "victim")
    path = tmp_path / "victim" / "stage.json"
    kept = json.loads(path.read_text())
    assert kept.pop("file_sha256")
    path.write_text(json.dumps(kept))
    assert Record(tmp_path / "victim", SETTINGS).outcome == {"hash": "abc"}


@pytest.mark.parametrize(
    "content", ["", '{"schema": 1, "sett', "[]", "3", "{}", '{"schema":1,"settings":1,"outcome":1}']
)
def test_a_damaged_record_is_named(tmp_path, content):
    done(tmp_path / "victim")
    (tmp_path / "victim" / "stage.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"victim/stage\.json is damaged .*: delete the folder"):
        Record(tmp_path / "victim", SETTINGS)
