"""Which configuration is chosen: tables before estimates, the user's before ours, and what is wrong in a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from llmquant.errors import LlmquantError, OutputError
from llmquant.kernels.gpu.choose import dispatch, estimate, table
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.choose.table import Entry, Table
from llmquant.kernels.gpu.fallback import fallbacks, forget_fallbacks, note_fallback

H200: Any = {"arch": "sm90", "processors": 132}
MINE, SHIPPED = Config(16, 64, 3, 8, 5), Config(32, 128, 2, 4, 3, pdl=True)
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (57344, 8192), (8192, 28672))


def entry(config: Config, **changes: Any) -> Entry:
    one = Entry("w4a16", m=(1, 16), n=(4096, 4096), k=(4096, 4096), unit=128, config=config, us=1.5, us_untuned=2.0)
    return replace(one, **changes)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and an empty folder of shipped tables."""
    monkeypatch.delenv(table.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "shipped_file", lambda arch: tmp_path / "shipped" / f"{arch}.json")
    dispatch.forget()
    yield tmp_path
    dispatch.forget()


def choose(m: int = 1, n: int = 4096, k: int = 4096, unit: int = 128, kind: str = "w4a16", **where: Any) -> Config:
    return dispatch.choose(kind=kind, m=m, n=n, k=k, unit=unit, **(H200 | where))


def test_the_users_table_comes_first_then_the_shipped_one_then_the_estimate(folders: Path) -> None:
    guess = estimate.candidates("sm90", "w4a16", 16, 4096, 4096, 128, 132)[0]
    assert choose(16) == guess
    table.write(folders / "shipped" / "sm90.json", Table("sm90", entries=(entry(SHIPPED, m=(1, 64)),)))
    assert choose(16) == guess  # what was chosen stays
    dispatch.forget()
    assert choose(16) == choose(64) == SHIPPED
    mine = table.user_file("sm90", 132)
    assert mine == folders / "cache" / "llmquant" / "gpu" / "sm90-132.json"
    table.write(mine, Table("sm90", 132, "H200", entries=(entry(MINE), entry(DENSE, n=(1, 10)))))
    dispatch.forget()
    assert choose(16) == MINE
    assert choose(64) == SHIPPED
    assert choose(8, n=10) == DENSE
    others: list[dict[str, Any]] = [{"n": 4097}, {"k": 8192}, {"unit": 64}, {"kind": "w4a8"}, {"m": 65}]
    for other in others:
        assert choose(**other) not in (MINE, SHIPPED)
    assert choose(16, processors=114) == SHIPPED
    assert choose(16, arch="sm80", processors=132) != SHIPPED


def test_a_table_can_be_named(folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    file = folders / "named.json"
    monkeypatch.setenv(table.VARIABLE, str(file))
    with pytest.raises(LlmquantError, match=r"LLMQUANT_GPU_TABLE is .*named\.json, where there is no file"):
        choose()
    table.write(table.user_file("sm90", 132), Table("sm90", 132, "H200", entries=(entry(MINE),)))
    assert file.exists()
    assert choose() == MINE
    with caplog.at_level(logging.WARNING):
        assert choose(arch="sm80", processors=108) != MINE
    assert "named.json is for sm90 with 132 multiprocessors (H200); this GPU is sm80 with 108" in caplog.text


def test_a_damaged_table_of_the_user_is_an_error_not_a_slow_model(folders: Path) -> None:
    file = table.user_file("sm90", 132)
    file.parent.mkdir(parents=True)
    file.write_text('{"version": 1')
    with pytest.raises(LlmquantError, match=r"sm90-132\.json: is no JSON .* llmquant bench --tune"):
        choose()


def test_rows_are_rounded_up_to_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(dispatch, "_decide", lambda *key: asked.append(key[2]) or MINE)
    for m in range(1, 66):
        choose(m)
    assert asked == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [dispatch.bucket(m) for m in (1, 2, 3, 16, 17, 1000)] == [1, 2, 4, 16, 32, 1024]


def test_a_table_survives_the_file(folders: Path) -> None:
    dense = entry(DENSE, m=(17, 64), unit=0, us=None, us_untuned=None)
    full = Table("sm90", 132, "H200", ({"date": "today"},), (entry(MINE), dense))
    file = folders / "a" / "b.json"
    for one in (full, Table("gfx942")):
        table.write(file, one)
        assert table.read(file) == one
    assert [each.name for each in file.parent.iterdir()] == ["b.json"]


def test_what_cannot_be_written_leaves_the_old_file(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folders / "b.json"
    table.write(file, Table("sm90"))

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(OutputError, match=r"b\.json cannot be written: No space left"):
        table.write(file, Table("sm80"))
    assert table.read(file).arch == "sm90"
    assert [each.name for each in folders.iterdir()] == ["b.json"]
    with pytest.raises(OutputError, match="cannot be written"):
        table.write(file / "c.json", Table("sm80"))


GOOD = {"kind": "w4a16", "m": [1, 16], "n": 64, "k": 128, "unit": 0, "config": {"block_m": 16, "block_n": 64}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "reads tables of version 1, not 2"),
        ({"arch": None}, "arch is None"),
        ({"processors": 0}, "processors is 0"),
        ({"entries": {}}, "entries is {}; it is a list"),
        ({"runs": 3}, "runs is 3"),
        ({"entry": []}, "unknown key 'entry'"),
        ({"entries": [GOOD, 7]}, "entry 1: it has keys"),
        ({"entries": [GOOD | {"kind": "w5a16"}]}, "entry 0: kind is 'w5a16'"),
        ({"entries": [GOOD | {"m": 0}]}, "entry 0: m is 0"),
        ({"entries": [GOOD | {"m": [4, 2]}]}, r"entry 0: m is \[4, 2\]"),
        ({"entries": [GOOD | {"n": [1, 2, 3]}]}, r"entry 0: n is \[1, 2, 3\]"),
        ({"entries": [GOOD | {"k": "4096"}]}, "entry 0: k is '4096'"),
        ({"entries": [GOOD | {"unit": False}]}, "entry 0: unit is False"),
        ({"entries": [GOOD | {"us": "1"}]}, "entry 0: us is '1'"),
        ({"entries": [GOOD | {"rows": 1}]}, "entry 0: unknown key 'rows'"),
        ({"entries": [{key: GOOD[key] for key in GOOD if key != "unit"}]}, "entry 0: unit is missing"),
        ({"entries": [GOOD | {"config": "fast"}]}, "entry 0: config is 'fast'"),
        ({"entries": [GOOD | {"config": {"block_m": 16}}]}, "entry 0: block_n is missing"),
        ({"entries": [GOOD | {"config": {"block_m": 48, "block_n": 64}}]}, "block_m is 48; it can be 16, 32, 64"),
        (
            {"entries": [GOOD | {"config": {"block_m": 16, "block_n": 64, "split_k": 0}}]},
            "split_k is 0; it can be 1",
        ),
        ({"entries": [GOOD | {"config": {"block_m": 16, "block_n": 64, "warps": 3}}]}, "warps is 3; it can be 1, 2"),
        ({"entries": [GOOD | {"config": {"block_m": 16, "block_n": 64, "pdl": 1}}]}, "pdl is 1; it is true or false"),
    ],
)
def test_mistakes_in_a_table_are_named(folders: Path, change: dict[str, Any], said: str) -> None:
    file = folders / "mine.json"
    plain = {"version": 1, "arch": "sm90", "entries": [GOOD]}
    file.write_text(json.dumps(plain))
    assert table.read(file).entries[0].config == Config(16, 64)
    file.write_text(json.dumps(plain | change))
    with pytest.raises(LlmquantError, match=rf"mine\.json: .*{said}.*; correct it, or delete it"):
        table.read(file)


def test_every_field_of_a_configuration_can_be_in_a_table(folders: Path) -> None:
    file = folders / "mine.json"
    config = dict.fromkeys(Config.__slots__, 16) | {"block_n": 64, "pdl": True}
    file.write_text(json.dumps({"version": 1, "arch": "sm90", "entries": [GOOD | {"config": config}]}))
    assert table.read(file).entries[0].config == Config(16, 64, 16, 16, 16, pdl=True)


def test_shipped_tables_hold_only_what_was_measured(repository: Path) -> None:
    shipped = sorted((repository / "kernels" / "gpu" / "choose" / "tables").iterdir())
    assert [file.name for file in shipped if file.suffix != ".json"] == []
    for file in shipped:
        read = table.read(file)
        assert read.arch == file.stem
        assert not read.entries or (read.gpu and read.runs and all(one.us for one in read.entries))


@pytest.mark.parametrize("arch", ["sm80", "sm86", "sm90", "sm103", "gfx942", "interpreter"])
@pytest.mark.parametrize("kind", estimate.KINDS)
def test_candidates_can_run(arch: str, kind: str) -> None:
    card = estimate.card_of(arch)
    for m in (1, 64, 4096):
        for n, k, unit in ((1, 1, 0), (65, 129, 32), (4096, 4096, 128), (128256, 4096, 64)):
            found = estimate.candidates(arch, kind, m, n, k, unit, 132)
            assert 0 < len(found) <= estimate.MOST
            assert len(set(found)) == len(found)
            product = estimate.Product(card, kind, m, n, k, unit, 132)
            for config in found:
                if config == DENSE:
                    assert not kind.endswith("a8")
                    continue
                assert estimate.shared_bytes(config, product) <= card.shared - 2048
                assert config.block_m == 16 or config.block_m < 2 * m
                assert config.block_n == 64 or config.block_n < 2 * n
                assert config.split_k == 1 or ceil(k / 128) >= 2 * config.split_k


@pytest.mark.parametrize("kind", ["w4a16", "w8a16", "w4a8", "w8a8"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_estimate_fills_a_large_gpu(kind: str, n: int, k: int) -> None:
    for m in (1, 16, 64):
        config = choose(m, n, k, kind=kind)
        programs = ceil(m / config.block_m) * ceil(n / config.block_n) * config.split_k
        assert programs / 132 / ceil(programs / 132) > 0.7  # of the multiprocessors' time has work
        assert config.block_m <= max(16, m)


def test_many_rows_go_to_the_library_and_few_do_not() -> None:
    for n, k in SHAPES:
        for kind in ("w4a16", "w8a16"):
            chosen = {m: choose(m, n, k, kind=kind) == DENSE for m in (1, 16, 64, 256, 512, 1024, 4096)}
            assert chosen == {m: m >= 1024 for m in chosen}
        assert DENSE not in {choose(m, n, k, kind=kind) for m in (1, 512, 8192) for kind in ("w4a8", "w8a8")}
    assert choose(64, kind="w4a32") == DENSE
    assert DENSE in estimate.candidates("sm90", "w4a16", 512, 4096, 4096, 128, 132)
    assert DENSE not in estimate.candidates("sm90", "w4a16", 64, 4096, 4096, 128, 132)


def test_fallbacks_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    forget_fallbacks()
    with caplog.at_level(logging.WARNING):
        for reason in ("rare", "often", "often"):
            note_fallback(reason)
    assert list(fallbacks().items()) == [("often", 2), ("rare", 1)]
    assert [record.message.split(" (")[0] for record in caplog.records] == ["GPU kernels: rare", "GPU kernels: often"]
    forget_fallbacks()
    assert fallbacks() == {}
