"""Client samplers: which workers a round takes, where it does not take all of them."""
