"""The command line as a user meets it: output, files, exit status, and errors without a traceback."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from llmquant.cli.main import OVER_BUDGET, main
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.eval.result import EvalReport
from llmquant.kernels.cpu import native
from tests.engine.conftest import save_tiny, tiny_llama

RECIPE = """\
version: 1
name: mine
rules:
  - {match: linear, scheme: int4-g32}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def quantized(model):
    recipe = model.parent / "mine.yaml"
    recipe.write_text(RECIPE)
    out = model.parent / "out"
    assert main(["quantize", str(model), "-r", str(recipe), "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def text(model):
    path = model.parent / "text.txt"
    path.write_text("\n".join(f"line {i} of a text that is long enough for some windows" for i in range(60)))
    return path


def test_plan_prints_every_kind_of_module_and_who_loads_it(model, tmp_path, capsys):
    assert main(["plan", str(model), "-r", "int4-g32", "--json", str(tmp_path / "plan.json")]) == 0
    shown = capsys.readouterr().out
    for word in ("q_proj", "down_proj", "embed_tokens", "int4-g32", "keep", "bits per weight", "transformers", "vLLM"):
        assert word in shown
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert sum(row["parameters"] for row in rows) == tiny_llama().num_parameters()


def test_full_plan_names_every_module(model, capsys):
    assert main(["plan", str(model / "config.json"), "-r", "int8", "--full"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert all(f"layers.{i}.mlp.down_proj" in shown for i in range(3))


def test_quantize_says_where_the_result_is(quantized, capsys):
    assert main(["quantize", str(quantized.parent / "model"), "-r", "int8", "-o", str(quantized.parent / "out8")]) == 0
    assert "tensors verified" in capsys.readouterr().out
    assert (quantized / "llmquant.json").exists()


def test_a_finished_run_that_is_resumed_says_so(model, quantized, capsys):
    recipe = ["-r", str(model.parent / "mine.yaml")]
    assert main(["quantize", str(model), *recipe, "-o", str(quantized), "--resume"]) == 0
    assert "was finished by an earlier run" in capsys.readouterr().out


def test_eval_writes_json_and_a_page_and_checks_the_budget(model, quantized, text, tmp_path, capsys):
    arguments = [
        "eval",
        str(quantized),
        "--baseline",
        str(model),
        "--text",
        str(text),
        "--length",
        "32",
        "--speed",
        "0",
    ]
    files = ["--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")]
    assert main([*arguments, *files, "--budget", "kl=100"]) == 0
    report = EvalReport.load(tmp_path / "r.json")
    assert report[Divergence].kl.mean > 0
    assert {name.split(":")[0] for name in report.kernels} == {"linear_int4"}
    assert "int4-g32" in (report.recipe_yaml or "")
    assert "<html" in (tmp_path / "r.html").read_text()
    assert main([*arguments, *files, "--budget", "kl=0.0000001"]) == 3
    assert "perplexity" in capsys.readouterr().out
    assert not EvalReport.load(tmp_path / "r.json").budget_passed


def test_a_wrong_command_line_is_not_a_missed_budget(capsys):
    with pytest.raises(SystemExit) as wrong:
        main(["eval", "--baseline", "MODEL"])
    assert wrong.value.code == 2 != OVER_BUDGET
    with pytest.raises(SystemExit):
        main(["--help"])
    described = capsys.readouterr().out
    for status in ("  0 ", "  1 ", "  2 ", f"  {OVER_BUDGET} ", "  130 "):
        assert status in described


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["eval", "--help"], ["completion", "bash"], ["recipes"], ["recipes", "int8"]],
)
def test_what_needs_no_model_imports_neither_torch_nor_transformers(arguments):
    program = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers", "numpy", "pydantic"):
            raise AssertionError(f"imports {name}")
sys.meta_path.insert(0, Refuse())
from llmquant.cli.main import OVER_BUDGET, main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_eval_names_kernels_and_accuracy_and_the_reference_agrees(
    model, quantized, text, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("LLMQUANT_CPU_KERNELS", raising=False)
    native.wanted.cache_clear()

    def run(*options):
        file = str(tmp_path / "r.json")
        # In bfloat16 the two round differently, which on so short a text is more than the kernels' own error.
        places = [str(quantized), "--baseline", str(model), "--text", str(text), "--length", "32", "--dtype", "float32"]
        assert main(["eval", *places, "--speed", "0", "--json", file, *options]) == 0
        report = EvalReport.load(file)
        assert next(iter(report.kernels)) in " ".join(capsys.readouterr().out.split())
        return report

    exact, reference = run(), run("--kernel", "reference")
    assert "LLMQUANT_CPU_KERNELS" not in os.environ
    assert all("reference" in name for name in reference.kernels)
    assert exact.accuracy == reference.accuracy == "exact"
    assert exact[Perplexity].quantized.value == pytest.approx(reference[Perplexity].quantized.value, rel=1e-5)
    if not native.wanted():
        pytest.skip("no C++ kernels here, so there is no fast mode")
    fast = run("--accuracy", "fast")
    assert fast.accuracy == "fast"
    assert [name.removesuffix("fast") for name in fast.kernels] == [
        name.removesuffix("exact") for name in exact.kernels
    ]
    assert fast[Divergence].kl.mean != exact[Divergence].kl.mean


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "nowhere/at-all/x", "-r", "int8"], "nowhere/at-all/x"),
        (["plan", "MODEL", "-r", "int4-g12x"], "unknown preset"),
        (["plan", "MODEL", "-r", "missing.yaml"], "missing.yaml"),
        (["quantize", "MODEL", "-r", "int8", "-o", "OUT"], "--overwrite"),
        (["quantize", "MODEL", "-r", "int8", "-o", "NEW", "--calibration", "x.txt"], "uses no calibration text"),
        (["eval", "OUT", "--baseline", "MODEL", "--text", "absent.txt", "--speed", "0"], "absent.txt"),
        (["eval", "OUT", "--baseline", "MODEL", "--text", "TEXT", "--dtype", "float17"], "float32"),
        (["plan", "OUT", "-r", "int8"], "is already quantized"),
        (["verify", "MODEL"], "is not quantized"),
        (["quantize", "MODEL", "-r", "int4-g32-gptq", "-o", "NEW", "--calibration", "x.txt"], "builtin:mixed"),
        (["eval", "OUT", "--baseline", "MODEL", "--text", "TEXT", "--length", "65", "--speed", "0"], "65"),
    ],
)
def test_errors_are_one_clear_message(model, quantized, text, tmp_path, capsys, arguments, said):
    places = {"MODEL": model, "OUT": quantized, "TEXT": text, "NEW": tmp_path / "new"}
    assert main([str(places.get(word, word)) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error


WRONG_NUMBERS = [
    ("--budget", "kl", "such as kl=0.03"),
    ("--budget", "kl=low", "such as kl=0.03"),
    ("--budget", "kl=nan", "positive number"),
    ("--budget", "klx=1", "the budgets are kl"),
    ("--speed", "-1", "seconds from 0 on"),
    ("--speed", "inf", "seconds from 0 on"),
    ("--max-windows", "0", "whole number from 1 on"),
    ("--length", "1.5", "whole number from 1 on"),
    ("--metric", "worst=" + "[" * 3000, "wanted NAME, NAME=false or"),
    ("--metric", 'worst={"count": ' + "[" * 3000, "wanted NAME, NAME=false or"),
]


@pytest.mark.parametrize(("option", "value", "said"), WRONG_NUMBERS)
def test_numbers_out_of_range_are_a_wrong_command_line(option, value, said, capsys):
    with pytest.raises(SystemExit) as wrong:
        main(["eval", "OUT", "--baseline", "MODEL", f"{option}={value}"])
    assert wrong.value.code == 2
    assert said in capsys.readouterr().err


def test_several_budgets_hold_together(model, quantized, text, monkeypatch):
    seen = {}

    def evaluate(*_, budget, **__):
        seen.update(budget)
        raise KeyboardInterrupt

    monkeypatch.setattr("llmquant.api.evaluate", evaluate)
    assert main(["eval", "OUT", "--baseline", "MODEL", "--budget", "kl=0.5", "--budget", "bits_per_weight=5"]) == 130
    assert seen == {"kl": 0.5, "bits_per_weight": 5.0}


def test_recipes_lists_and_prints(capsys):
    assert main(["recipes"]) == 0
    assert "int4-g128-gptq" in capsys.readouterr().out
    assert main(["recipes", "int8"]) == 0
    assert "version: 1" in capsys.readouterr().out


JSON_VERBS: dict[str, tuple[list[str], str]] = {
    "plan": (["MODEL", "-r", "int8"], "rows"),
    "verify": (["OUT"], "digests"),
    "eval": (["OUT", "--baseline", "MODEL", "--text", "TEXT", "--length", "32", "--speed", "0"], "sections"),
    "bench": (["OUT", "--context", "4", "--new", "2", "--seconds", "0", "--accuracy", "exact"], "rows"),
    "push": (["OUT", "me/mine", "--dry-run"], "card"),
    "recipes": ([], "int4-g128-gptq"),
}


@pytest.mark.parametrize("verb", JSON_VERBS)
def test_json_on_standard_output_stands_alone_and_the_rest_is_on_standard_error(
    verb, model, quantized, text, capsys, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"MODEL": str(model), "OUT": str(quantized), "TEXT": str(text)}
    words, key = JSON_VERBS[verb]
    assert main([verb, *(places.get(word, word) for word in words), "--json", "-"]) == 0
    written = capsys.readouterr()
    assert key in json.loads(written.out)
    assert len(written.err.splitlines()) >= 1


def test_a_recipe_as_json_is_the_recipe(capsys):
    assert main(["recipes", "int8", "--json", "-"]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out) == yaml.safe_load(written.err)


@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize("target", ["DIR", "DIR/absent/file", "DIR/closed/file", f"DIR/{'x' * 300}"])
def test_what_cannot_be_written_is_refused_before_the_work(option, target, tmp_path, capsys, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path))  # root may write anywhere
    monkeypatch.setattr("llmquant.api.evaluate", lambda *_, **__: pytest.fail("the work began"))
    target = target.replace("DIR", str(tmp_path))
    assert main(["eval", "OUT", "--baseline", "MODEL", option, target]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_names_from_outside_are_neither_markup_nor_orders(tmp_path, capsys, text):
    """Folder, recipe and layers may hold what a terminal would obey; the results are on disk before they are shown."""
    model, out = tmp_path / "m [bold] \x1b[2J", tmp_path / "o [red] :warning:"
    save_tiny(model)
    recipe = tmp_path / "r [red].yaml"
    recipe.write_text(RECIPE.replace("mine", '"[/mine] \\e[2J"'))
    capsys.readouterr()  # transformers' bars
    assert main(["plan", str(model), "-r", str(recipe)]) == 0
    assert main(["quantize", str(model), "-r", str(recipe), "-o", str(out)]) == 0
    measured = ["--text", str(text), "--length", "32", "--speed", "0", "--max-windows", "8"]
    assert main(["eval", str(out), "--baseline", str(model), *measured, "--json", str(tmp_path / "r.json")]) == 0
    assert main(["plan", str(tmp_path / "absent [/y] \x1b[2J"), "-r", "int8"]) == 1
    said = capsys.readouterr()
    assert "[/mine]" in said.out
    assert "o [red] :warning:" in said.out
    assert "[/y]" in said.err
    assert "\x1b" not in said.out + said.err
    assert EvalReport.load(tmp_path / "r.json").name.startswith("[/mine]")


def test_results_are_on_disk_before_they_are_shown(model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("llmquant.cli.plan.print_plan", fail)
    file = tmp_path / "plan.json"
    assert main(["plan", str(model), "-r", "int8", "--json", str(file)]) == 130
    assert json.loads(file.read_text())["rows"]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmquant.engine.run.finalize", interrupt)
        assert main(["quantize", str(model), "-r", "int8", "-o", str(out)]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert main(["quantize", str(model), "-r", "int8", "-o", str(out), "--resume"]) == 0
    monkeypatch.setattr("llmquant.api.plan", interrupt)
    capsys.readouterr()
    assert main(["plan", str(model), "-r", "int8"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_missing_tokenizer_is_named_before_the_work(model, tmp_path, capsys, monkeypatch):
    bare = tmp_path / "bare"
    tiny_llama().save_pretrained(bare)
    monkeypatch.setattr("llmquant.engine.prepare.build_skeleton", lambda *_, **__: pytest.fail("the work began"))
    for verb in (["quantize", str(bare), "-o", str(tmp_path / "out")], ["plan", str(bare)]):
        assert main([*verb, "-r", "int4-g32-gptq"]) == 1
        assert f"{bare} has no tokenizer" in capsys.readouterr().err
    monkeypatch.setattr("llmquant.hf.load.load", lambda *_, **__: pytest.fail("the work began"))
    assert main(["eval", str(model), "--baseline", str(bare)]) == 1
    assert f"{bare} has no tokenizer" in capsys.readouterr().err


def test_a_stream_that_lacks_characters_is_no_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "llmquant", "recipes", "nö"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown preset 'n?'")
