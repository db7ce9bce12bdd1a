"""The command line as a user meets it: output, files, exit status, and errors without a traceback."""

import json

import pytest

from llmquant.cli import main
from llmquant.eval.result import EvalReport
from tests.engine.conftest import byte_tokenizer, tiny_llama

RECIPE = """\
version: 1
name: mine
rules:
  - {match: linear, scheme: int4-g32}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


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
    assert report.comparison.kl.mean > 0
    assert {name.split(":")[0] for name in report.kernels} == {"linear_int4"}
    assert "int4-g32" in (report.recipe_yaml or "")
    assert "<html" in (tmp_path / "r.html").read_text()
    assert main([*arguments, "--budget", "kl=0.0000001"]) == 2
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "nowhere/at-all/x", "-r", "int8"], "nowhere/at-all/x"),
        (["plan", "MODEL", "-r", "int4-g127"], "unknown preset"),
        (["plan", "MODEL", "-r", "missing.yaml"], "missing.yaml"),
        (["quantize", "MODEL", "-r", "int8", "-o", "OUT"], "--overwrite"),
        (["quantize", "MODEL", "-r", "int8", "-o", "NEW", "--calibration", "x.txt"], "uses no calibration text"),
        (["eval", "OUT", "--baseline", "MODEL", "--text", "absent.txt", "--speed", "0"], "absent.txt"),
        (["eval", "OUT", "--baseline", "MODEL", "--text", "TEXT", "--budget", "kl=low", "--speed", "0"], "kl=0.03"),
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


def test_recipes_lists_and_prints(capsys):
    assert main(["recipes"]) == 0
    assert "int4-g128-gptq" in capsys.readouterr().out
    assert main(["recipes", "int8"]) == 0
    assert "version: 1" in capsys.readouterr().out
