"""Detectors as ONNX files that answer with finished detections, and the proof that they do."""
