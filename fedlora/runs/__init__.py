"""What a federation is made of: runs, rounds, tasks, evaluations, reports, events."""
