"""`rl migrate`: turns configurations of MindSpeed-RL, verl and TRL into Turnwise's."""
