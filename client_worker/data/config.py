"""Where a worker's examples are and how they are laid out: the section [data]."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason

__all__ = ["DataConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """One collection of examples.

    sequence_classification reads text_column and label_column. causal_lm reads messages_column
    where there is one, else prompt_column and completion_column, else text_column.
    """

    path: str
    """a .jsonl, .csv or .parquet file, or the id of a data set on the hub"""
    reader: str = ""
    """how a row becomes an example: the name of an installed reader (docs/extending.md); empty: by
    the columns below"""
    text_column: str = "text"
    """the text to classify, or plain text to continue"""
    label_column: str = "label"
    """the label; also what a Dirichlet partition goes by"""
    prompt_column: str = "prompt"
    """what the model is given; carries no loss"""
    completion_column: str = "completion"
    """what the model is to answer"""
    messages_column: str = "messages"
    """a chat: a list of {"role", "content"}; the assistant's turns carry the loss"""
    split_column: str = ""
    """column that tells test rows from training rows; empty: all rows are for training"""
    test_split: str = "test"
    """value of split_column in test rows; all other rows are for training"""
    test_path: str = ""
    """file with test rows, where they are not in `path`"""
    held_out_fraction: float = 0.1
    """share of the worker's training rows that is kept for scoring and never trained on"""
    public_fraction: float = 0.0
    """share of the training rows that no party has: the server's, where one file is all there is"""
    only_public: bool = False
    """take those rows and no others; for the worker with the role server_data"""
    max_examples: int = 0
    """use the first so many training rows of this worker; 0 takes all"""

    def __post_init__(self) -> None:
        if not self.path:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "data.path is empty",
                hint="Name a .jsonl, .csv or .parquet file, or a data set on the hub",
            )
        for name in ("held_out_fraction", "public_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"data.{name} must lie in [0, 1), got {getattr(self, name)}",
                )
        if self.only_public and not self.public_fraction:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "data.only_public is set, and data.public_fraction is 0: no row is public",
                hint="Set data.public_fraction, to the same share on every worker",
            )
        if self.max_examples < 0:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"data.max_examples must not be negative, got {self.max_examples}",
            )
        if self.split_column and self.test_path:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "data.split_column and data.test_path both say where the test rows are",
                hint="Set one of them",
            )
