"""A short version of kill_resume.py: SIGKILL at random moments, then --resume."""

import importlib.util
from pathlib import Path

import yaml


def test_killed_runs_resume_to_the_same_bytes(checkpoint, gptq_recipe, tmp_path):
    spec = importlib.util.spec_from_file_location("kill_resume", Path(__file__).with_name("kill_resume.py"))
    kill_resume = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill_resume)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(gptq_recipe))
    lines = kill_resume.check(checkpoint, recipe, tmp_path, kills=2, seed=3)
    assert len(lines) == 2
