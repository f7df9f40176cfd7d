"""Decisions of a run, without input or output: (state, event, now) -> (state, effects)."""
