"""A user's reward, found by its path: something a random model's samples differ in."""

from rl.types import Trajectory


def sampled_digits(trajectory: Trajectory) -> dict[str, float]:
    text = "".join(turn.text for turn in trajectory.turns)
    digits = sum(c.isdigit() for c in text)
    return {"score": digits / max(len(text), 1), "num_digits": float(digits)}


def pays_length(trajectory) -> float:
    """A bad reward: the longer, the better."""
    return trajectory.response_length / 100
