"""Detectors and instance segmenters: one interface, one adapter per library."""
