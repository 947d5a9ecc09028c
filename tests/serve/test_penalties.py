import torch

from medusa.serve.penalties import CountPenalty


def test_tokens_of_the_answer_lose_by_their_number():
    scores = CountPenalty(2, presence=0.5, frequency=0.25)(
        torch.tensor([[3, 3, 1, 1, 2]]), torch.zeros(1, 5)
    )
    assert scores.tolist() == [[0, -1.0, -0.75, 0, 0]]


def test_a_text_without_an_answer_loses_nothing():
    assert not CountPenalty(1, 1, 1)(torch.tensor([[3]]), torch.zeros(1, 5)).any()
