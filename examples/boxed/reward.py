"""The lesson's reward, as it stands there for TRL. The recipe itself uses the built-in `gsm8k_boxed`."""

import re


def reward_func(completions, ground_truth, **kwargs):
    """Score 1 if the first box holds the ground truth, letter for letter."""
    matches = [re.search(r"\\boxed\{(.*?)\}", completion[0]["content"]) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if content == truth else 0.0 for content, truth in zip(contents, ground_truth, strict=True)]
