"""A whole federation in one process: the server's code and the workers', without RPC between.

Loaded only by the process that simulates (`python -m fedlora_cli.simulation`), so it may import
both services at once.
"""
