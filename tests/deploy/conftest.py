import pytest

from medusa import demo


@pytest.fixture(scope="session")
def demo_model():
    return demo.load()
