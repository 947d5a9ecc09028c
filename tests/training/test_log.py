from datetime import timedelta
from types import SimpleNamespace

from medusa.training.log import LogPrinter, StepTimer


def test_the_time_left_distinguishes_steps_and_evaluations(clock):
    timer = StepTimer()
    clock.now = 100.0
    timer.begin(50)  # a resumed run
    clock.now = 130.0
    timer.add_evaluation(30.0)
    clock.now = 150.0
    assert timer.seconds_per_step(60) == 2.0
    assert timer.time_left(60, 100, evaluations=2) == timedelta(seconds=40 * 2 + 2 * 30)


def test_the_time_left_is_printed_after_the_first_steps_and_in_long_silences(clock):
    said = []
    lines = LogPrinter(StepTimer(), False, said.append)
    args = SimpleNamespace(logging_steps=100, eval_strategy="no", eval_steps=None)
    state = SimpleNamespace(global_step=0, max_steps=50, is_world_process_zero=True)
    lines.on_train_begin(args, state, None)
    for state.global_step in range(1, 13):
        clock.now += 2.5
        lines.on_step_end(args, state, None)
    assert said == [
        "step 3/50  2.5 s a step  0:01:58 left",
        "step 11/50  2.5 s a step  0:01:38 left",
    ]
