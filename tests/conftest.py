import pytest
import torch


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """A test that left gradients off would make others fail, far from the cause."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
