"""A Flower app whose rounds move adapters and train nothing."""
