"""The worker: trains a run's adapter on data that never leaves its machine.

`app` puts the parts together; `runner` goes from task to task; `adaptation`, `data` and
`training` are the model, the examples and what brings them together.
"""
