"""The verbs, for detection."""
