import copy

import torch
from models import tiny
from torch.optim.lr_scheduler import LambdaLR

from medusa.training.muon import Muon, muon_matrices

ROWS = torch.arange(24).reshape(2, 12)


def test_muon_moves_only_the_linear_layers():
    base = tiny("llama")
    names = {name for name, each in base.named_parameters() if each in muon_matrices(base)}
    assert {name.split(".")[-2] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert len(names) == 7 * base.config.num_hidden_layers


def test_the_combined_optimizer_equals_the_two_alone():
    one, two = (tiny("llama") for _ in range(2))
    two.load_state_dict(one.state_dict())

    def parts(model):
        inside = [each for each in model.parameters() if each in muon_matrices(model)]
        others = [each for each in model.parameters() if each not in muon_matrices(model)]
        return inside, torch.optim.AdamW(others, lr=2e-2, weight_decay=0.0)

    def learn(model, *optimizers):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(ROWS, labels=ROWS).loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    together = Muon(*parts(one), lr=1e-2, weight_decay=0.1)
    schedule = LambdaLR(together, lambda step: 1 / (1 + step))
    inside, adamw = parts(two)
    muon = torch.optim.Muon(inside, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        if step == 2:  # stop and resume
            state, place = copy.deepcopy(together.state_dict()), schedule.state_dict()
            together = Muon(*parts(one), lr=1e-2, weight_decay=0.1)
            schedule = LambdaLR(together, lambda step: 1 / (1 + step))
            together.load_state_dict(state)
            schedule.load_state_dict(place)
        for optimizer, rate in ((muon, 1e-2), (adamw, 2e-2)):
            optimizer.param_groups[0]["lr"] = rate * (1 / (1 + step))
        learn(one, together)
        learn(two, muon, adamw)
        schedule.step()
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)
