"""Randomly initialised transformers models of a few kilobytes, wrapped by the real peft."""

from __future__ import annotations

import torch


def classifier(seed: int = 0):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


def causal_lm(seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0):
    """Its Conv1D layers store their weight in x out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config).eval()


def adapted(model, *, seed: int, **config):
    """The model with a LoRA adapter whose A, B and head are all random."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return wrapped


def delta_weights(wrapped) -> dict[str, torch.Tensor]:
    """peft's own s B A of every adapted module, out x in, by path."""
    found = {}
    for name, module in wrapped.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A"):
            delta = module.get_delta_weight("default").detach().double()
            found[name] = delta.T if getattr(module, "fan_in_fan_out", False) else delta
    return found


def logits(wrapped) -> torch.Tensor:
    with torch.no_grad():
        return wrapped(input_ids=torch.arange(8).reshape(2, 4)).logits
