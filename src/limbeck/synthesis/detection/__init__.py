"""Annotated pictures for a detector, made from the detector alone."""
