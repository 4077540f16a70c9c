"""Tasks: what a batch's targets are, the supervised loss, and how a model is measured."""
