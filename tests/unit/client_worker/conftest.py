from __future__ import annotations

import pytest
import torch
from support.tiny_models import CHAT_TEMPLATE, save_tiny_bert, save_tiny_llama


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Folder of a tiny encoder without a head."""
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Folder of a tiny decoder with a chat template."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), chat_template=CHAT_TEMPLATE)
