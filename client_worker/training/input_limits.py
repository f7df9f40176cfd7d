"""What a base model can be given: tokens that it has vectors for, and sequences it has places for.

What is beyond them is an index error deep in a forward pass, and on a CUDA device the end of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from client_worker.data.encoding import EncodedExample
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.training import TrainingSpec

__all__ = ["InputLimits"]

_TABLE_OF_PLACES = re.compile(r"position|wpe")
_MOST_RESERVED = 2
"""rows that a table of places has beyond max_position_embeddings, as in OPT"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """Of one base model."""

    num_tokens: int
    """rows of its input embedding; ids are below"""
    num_places: int | None
    """tokens of its longest sequence, where each place has a trained vector; None for any"""

    @classmethod
    def of(cls, model: Any) -> Self:
        """The limits of a transformers model that has no adapter yet."""
        rows: int = model.get_input_embeddings().weight.shape[0]
        return cls(num_tokens=rows, num_places=_num_places(model))

    def check(
        self, examples: Iterable[EncodedExample], training: TrainingSpec, *, pad_id: int
    ) -> None:
        """Refuses examples that the model cannot be given.

        Raises:
            FedLoraError: INVALID_MODEL for tokens without a vector, INVALID_CONFIG for sequences
                that are too long, INVALID_DATA for a text without a token.
        """
        largest, shortest, longest = pad_id, 1, 0
        for example in examples:
            largest = max(largest, max(example.input_ids, default=0))
            shortest = min(shortest, example.num_tokens)
            longest = max(longest, example.num_tokens)
        if largest >= self.num_tokens:
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"the tokenizer gives the token {largest}, and the base model has vectors for "
                f"{self.num_tokens}, counted from 0",
                hint="Save both after model.resize_token_embeddings(len(tokenizer)), or pad with a "
                "token that the model has: tokenizer.pad_token = tokenizer.eos_token",
            )
        if shortest == 0:
            raise FedLoraError(
                Reason.INVALID_DATA,
                "there is a text of which the tokenizer knows nothing: it has no token",
                hint="Leave such texts out, or take a base model that knows their script",
            )
        if self.num_places is None:
            return
        # A packed row's padding is counted on to the row's end.
        longest = training.max_sequence_tokens if training.packing else longest
        if longest > self.num_places:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"training.max_sequence_tokens is {training.max_sequence_tokens}, and here is a "
                f"sequence of {longest} tokens; the base model has places for {self.num_places}",
                hint=f"Set training.max_sequence_tokens = {self.num_places}: longer texts are cut",
            )


def _num_places(model: Any) -> int | None:
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    found = [
        min(most, table.num_embeddings - (table.padding_idx + 1 if table.padding_idx else 0))
        for path, table in model.named_modules()
        if isinstance(table, nn.Embedding)
        and _TABLE_OF_PLACES.search(path)
        # Those of a vision tower beside a language model have another number.
        and most <= table.num_embeddings <= most + _MOST_RESERVED
    ]
    return min(found, default=None)
