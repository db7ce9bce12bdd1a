"""A short version of kill_resume.py: SIGKILL at random moments, then --resume."""

import yaml

from tests.engine.kill_resume import check


def test_killed_runs_resume_to_the_same_bytes(checkpoint, gptq_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(gptq_recipe))
    lines = check(checkpoint, recipe, tmp_path, kills=2, seed=3)
    assert len(lines) == 2
