"""How much each update of a round counts: one rule per file.

A rule sees the cohort as a whole, before any module is combined, and returns weights that are
finite, not negative and sum to 1.
"""
