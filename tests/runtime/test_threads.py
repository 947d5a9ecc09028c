import threading

import pytest

from medusa.runtime.threads import in_passing_thread


def test_the_thread_has_ended_when_its_result_is_there():
    found = in_passing_thread(threading.current_thread)
    assert found is not threading.current_thread()
    assert not found.is_alive()


def test_errors_reach_the_caller():
    with pytest.raises(ValueError, match="broken"):
        in_passing_thread(lambda: (_ for _ in ()).throw(ValueError("broken")))
