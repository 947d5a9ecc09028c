import hub as stand_in
import pytest
from hub import Hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    """A local hub that this process takes for the Hugging Face hub."""
    with stand_in.hub() as running:
        running.be_the_hub(monkeypatch, tmp_path / "cache")
        yield running
