"""The base model and the adapter on it: the only code that knows transformers and peft."""
