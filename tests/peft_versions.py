"""A mark for tests of transformers' own methods for adapters, such as `add_adapter`."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION


def _usable() -> bool:
    try:
        return Version(version("peft")) >= Version(MIN_PEFT_VERSION)
    except PackageNotFoundError:
        return False


own_methods = pytest.mark.skipif(
    not _usable(), reason=f"transformers' own methods for adapters need peft {MIN_PEFT_VERSION}"
)
