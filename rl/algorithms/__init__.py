"""The algorithms: pure functions on tensors. Tables such as `LOSSES` map configuration values to them."""
