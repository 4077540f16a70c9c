"""Artefacts for devices: written whole, verified on real images, timed."""
