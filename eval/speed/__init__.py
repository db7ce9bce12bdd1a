"""Speed and memory of loaded models that take turns, by batch and context: of `bench` and of an evaluation."""
