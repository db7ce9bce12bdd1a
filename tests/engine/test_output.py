"""The journal and the output folder on their own: torn lines, two runs at once, leftovers of a killed finish."""

import json

import pytest

from llmquant.engine.journal import Journal, LayerRecord, ShardRecord
from llmquant.engine.output import JOURNAL, PROVENANCE, OutputFolder
from llmquant.errors import OutputError

IDENTITY = {"schema": 1, "recipe": "r", "threads": 2}


def shard(number):
    layers = {"a.b": LayerRecord("int4-g32", "rtn", "abc", 0.01, 0.5, {"zero_groups": 2})}
    return ShardRecord(f"model-{number}.safetensors", 10, ["a.b.weight_packed"], layers)


def test_a_journal_is_read_back(tmp_path):
    journal = Journal(tmp_path / JOURNAL, IDENTITY)
    journal.record(shard(1))
    journal.record(shard(2))
    assert Journal(tmp_path / JOURNAL, IDENTITY).shards == {s.file: s for s in (shard(1), shard(2))}


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_dropped(tmp_path, kept):
    path = tmp_path / JOURNAL
    Journal(path, IDENTITY).record(shard(1))
    whole = path.read_bytes()
    Journal(path, IDENTITY).record(shard(2))
    added = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + added[:kept])
    journal = Journal(path, IDENTITY)
    assert list(journal.shards) == [shard(1).file]
    journal.record(shard(2))
    assert len(Journal(path, IDENTITY).shards) == 2


def test_a_torn_first_line_begins_anew(tmp_path):
    (tmp_path / JOURNAL).write_text('{"schema"')
    assert Journal(tmp_path / JOURNAL, IDENTITY).shards == {}
    assert json.loads((tmp_path / JOURNAL).read_text()) == IDENTITY


def test_another_identity_is_refused_by_name(tmp_path):
    Journal(tmp_path / JOURNAL, IDENTITY)
    with pytest.raises(OutputError, match="threads: 2 then, 4 now"):
        Journal(tmp_path / JOURNAL, {**IDENTITY, "threads": 4})


def test_a_damaged_journal_is_not_guessed_at(tmp_path):
    path = tmp_path / JOURNAL
    Journal(path, IDENTITY).record(shard(1))
    path.write_text(path.read_text().replace('"file"', '"file'))
    with pytest.raises(OutputError, match="is damaged"):
        Journal(path, IDENTITY)


def test_two_runs_cannot_share_a_folder(tmp_path):
    with OutputFolder(tmp_path / "out") as first:
        first.begin(IDENTITY, resume=False, overwrite=False)
        with OutputFolder(tmp_path / "out") as second, pytest.raises(OutputError, match="another process"):
            second.begin(IDENTITY, resume=True, overwrite=False)
        with OutputFolder(tmp_path / "out") as third, pytest.raises(OutputError, match="another process"):
            third.begin(IDENTITY, resume=False, overwrite=True)
        assert (tmp_path / "out.partial" / JOURNAL).exists()
    with OutputFolder(tmp_path / "out") as again:
        again.begin(IDENTITY, resume=True, overwrite=False)


def finished(folder, mark):
    folder.mkdir()
    for name in (PROVENANCE, "config.json"):
        (folder / name).write_text(mark)


@pytest.mark.parametrize("stage", ["before", "old moved away", "renamed"])
def test_a_finish_that_was_killed_can_be_completed(tmp_path, stage):
    """The three states that a kill inside `finish` of an overwriting run can leave."""
    finished(tmp_path / "out", "old")
    output = OutputFolder(tmp_path / "out")
    output.begin(IDENTITY, resume=False, overwrite=True)
    for name in (PROVENANCE, "config.json"):
        (output.partial / name).write_text("new")
    if stage != "before":
        output.out.rename(tmp_path / "out.replaced")
    if stage == "renamed":
        output.partial.rename(output.out)
    output.__exit__(None, None, None)
    with OutputFolder(tmp_path / "out") as resumed:
        if stage == "renamed":
            resumed.check(resume=True, overwrite=False)
            resumed.tidy()
        else:
            resumed.begin(IDENTITY, resume=True, overwrite=True)
            resumed.finish()
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        PROVENANCE: "new",
        "config.json": "new",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_without_a_journal_is_not_ours(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes").write_text("mine")
    with OutputFolder(tmp_path / "out") as output, pytest.raises(OutputError, match="not an interrupted run"):
        output.begin(IDENTITY, resume=True, overwrite=True)
