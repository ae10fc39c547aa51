"""The README's example of a reward loads from its YAML and scores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rl.rewards.registry import load_rewards
from tests.unit.observability.examples import make_trajectory

README = (Path(__file__).parents[2] / "README.md").read_text()


async def test_readme_reward_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = re.search(r"```python\n(.*?)```\s*```yaml\n(.*?)```", README, re.S).groups()
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    section = yaml.safe_load(settings)["rl_config"]
    rewards = load_rewards(
        section["verifier_function"], section["verifier_weight"], section["verifier_kwargs"], timeout=30.0
    )
    trajectory = make_trajectory(score=None)
    try:
        scores = await rewards.score(trajectory)
    finally:
        rewards.close()
    assert scores.reward_error is None
    assert scores.score == 1.0


def test_readme_names_files_that_exist() -> None:
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (root / link).exists() and not link.endswith(".png")] == []
