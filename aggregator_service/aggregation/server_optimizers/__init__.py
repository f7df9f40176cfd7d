"""How far the global adapter follows a round's result: server optimisers, one family per file."""
