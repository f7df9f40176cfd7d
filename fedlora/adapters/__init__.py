"""LoRA adapters in PEFT's words: their specification, names, factors and files."""
