"""The journal and the output folder on their own: torn lines, two runs at once, leftovers of a killed finish."""

import json
import os

import pytest

from llmquant.engine.output.folder import JOURNAL, PROVENANCE, REPLACED, OutputFolder, is_finished
from llmquant.engine.output.journal import Journal, LayerRecord, ShardRecord
from llmquant.errors import OutputError
from tests.engine.kill_boundaries import every_kill

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
        output.out.rename(output.partial / REPLACED)
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


def replace_result(out):
    """What an overwriting run does to the folders; its two files stand for the work."""
    with OutputFolder(out) as output:
        output.begin(IDENTITY, resume=False, overwrite=True).record(shard(1))
        for name in (PROVENANCE, "config.json"):
            (output.partial / name).write_text("new")
        output.finish()


def resume_result(out):
    """What `--resume --overwrite` does after any interruption."""
    with OutputFolder(out) as output:
        output.check(resume=True, overwrite=True)
        if is_finished(out) and not output.partial.exists():
            output.tidy()
            if (out / PROVENANCE).read_text() == "old":  # `run` tells by the identity
                replace_result(out)
            return
        output.begin(IDENTITY, resume=True, overwrite=True)
        for name in (PROVENANCE, "config.json"):
            (output.partial / name).write_text("new")
        output.finish()


@pytest.mark.parametrize("again", [replace_result, resume_result])
@pytest.mark.parametrize(
    "before", ["nothing", "a result", "a result and an interrupted run", "a finish that was killed"]
)
def test_no_kill_of_an_overwriting_run_blocks_the_next(tmp_path, before, again):
    def make(number):
        work = tmp_path / f"round{number}"
        work.mkdir()
        finished(work / "out.replaced", "mine")  # a result of the user's that has this name
        out, partial = work / "out", work / "out.partial"
        if before.startswith("a result"):
            finished(out, "old")
        if "interrupted" in before or "killed" in before:
            partial.mkdir()
            (partial / JOURNAL).write_text(json.dumps(IDENTITY) + "\n")
            (partial / "model-1.safetensors").write_text("old")
        if "killed" in before:
            finished(partial / REPLACED, "old")
        return work, lambda: replace_result(out)

    rounds = 0
    for number, work, killed in every_kill(make):
        rounds = number
        if before != "nothing":  # there is always a whole result somewhere
            assert is_finished(work / "out") or is_finished(work / "out.partial" / REPLACED)
        if killed:
            again(work / "out")
        assert sorted(path.name for path in work.iterdir()) == ["out", "out.replaced"], f"kill {number}"
        assert content(work / "out.replaced") == dict.fromkeys((PROVENANCE, "config.json"), "mine")
        new = content(work / "out")
        assert JOURNAL not in new
        assert {name: new[name] for name in (PROVENANCE, "config.json")} == {PROVENANCE: "new", "config.json": "new"}
    assert rounds > 5


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_older_result_that_waits_is_named_and_comes_back(tmp_path):
    """Where a run was killed between the two names: without the run, the older result is what there is."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / JOURNAL).write_text(json.dumps(IDENTITY) + "\n")
    finished(tmp_path / "out.partial" / REPLACED, "old")
    with OutputFolder(tmp_path / "out") as output:
        with pytest.raises(OutputError, match=r"interrupted run, and the result that it was to replace, in 'replaced'"):
            output.check(resume=False, overwrite=False)
        output.begin(IDENTITY, resume=False, overwrite=True)
        assert content(tmp_path / "out") == dict.fromkeys((PROVENANCE, "config.json"), "old")
        assert [path.name for path in output.partial.iterdir()] == [JOURNAL]


def test_only_a_journal_lets_a_folder_be_tidied(tmp_path):
    finished(tmp_path / "out", "old")
    finished(tmp_path / "out" / REPLACED, "mine")
    OutputFolder(tmp_path / "out").tidy()
    assert is_finished(tmp_path / "out" / REPLACED)
    (tmp_path / "out" / JOURNAL).write_text("")
    OutputFolder(tmp_path / "out").tidy()
    assert content(tmp_path / "out") == dict.fromkeys((PROVENANCE, "config.json"), "old")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 255])
def test_a_name_that_no_folder_can_have(tmp_path, name):
    with pytest.raises(OutputError), OutputFolder(tmp_path / name) as output:
        output.begin(IDENTITY, resume=False, overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_pipe_in_the_way(tmp_path):
    os.mkfifo(tmp_path / "out.partial")
    with (
        pytest.raises(OutputError, match="is a file, where an unfinished run"),
        OutputFolder(tmp_path / "out") as output,
    ):
        output.begin(IDENTITY, resume=True, overwrite=True)


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "1", '{"file": "x"}', "[" * 100_000, "9" * 5000, '{"file": 1, "bytes": 1, "tensors": [], "layers": {}}',
        '{"file": "../x", "bytes": 1, "tensors": [], "layers": {}}',
        '{"file": "x", "bytes": "1", "tensors": [], "layers": {}}',
        '{"file": "x", "bytes": 1, "tensors": [2], "layers": {}}',
        '{"file": "x", "bytes": 1, "tensors": [], "layers": {"a": {}}}',
        '{"file": "x", "bytes": 1, "tensors": [], "layers": [], "more": 1}',
    ],
)  # fmt: skip
def test_a_journal_of_other_lines_is_damaged(tmp_path, line):
    Journal(tmp_path / JOURNAL, IDENTITY)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(OutputError, match="is damaged"):
        Journal(tmp_path / JOURNAL, IDENTITY)


def test_a_journal_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / JOURNAL)
    with pytest.raises(OutputError, match="is not a plain file"):
        Journal(tmp_path / JOURNAL, IDENTITY)
