import pytest
from running import demo_app, running

from medusa import demo


@pytest.fixture(scope="session")
def demo_model():
    return demo.load()


@pytest.fixture(scope="session")
def address(demo_model):
    """A server of the embedded model."""
    with running(demo_app(*demo_model)) as address:
        yield address
