"""All seeded bugs: the mistakes that this kind of system is known for.

Acknowledging too early, counting twice, trusting what was not checked, waiting for the
dead, letting in the wrong one. A change that moves a mutant's text moves it here too
(`test_mutants.py` says which); a new promise brings a mutant of its own.
"""

from __future__ import annotations

from mutants.mutant import Mutant
from mutants.of_access import ACCESS
from mutants.of_durability import DURABILITY
from mutants.of_results import RESULTS
from mutants.of_rounds import ROUNDS
from mutants.of_uploads import UPLOADS

__all__ = ["MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (*UPLOADS, *DURABILITY, *ROUNDS, *RESULTS, *ACCESS)
