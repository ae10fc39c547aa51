"""The algorithms: pure functions on tensors, looked up by name where the configuration chooses."""
