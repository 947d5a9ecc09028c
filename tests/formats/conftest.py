import pytest
import torch
from models import tiny


@pytest.fixture(scope="module")
def base():
    """A tiny Llama in float32."""
    return tiny("llama", torch.float32)
