"""Which method helps here: many runs of one recipe side by side, and what they say together."""
