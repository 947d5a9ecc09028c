"""The embedded model's backbone: a small Llama trained from scratch on seeded tasks.

The hidden matrices are trained with Muon, which needs about half the tokens AdamW does at this
scale. At the end of the run, heads like Medusa's learn along with the backbone, so that its hidden
states come to tell of more than the next token. The shipped heads begin as these, and are then
trained on the finished backbone, which stays as it is.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from medusa.core.heads import MedusaConfig, MedusaHeads
from medusa.demo.tasks import CATEGORIES, Task, check, make_task
from medusa.training.losses import medusa1_loss

from .recipe import Foresight, Recipe
from .stream import collate, stream


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The untrained backbone."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            num_hidden_layers=recipe.layers,
            intermediate_size=recipe.intermediate_size,
            num_attention_heads=recipe.hidden_size // 64,
            num_key_value_heads=recipe.hidden_size // 64,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    look_back(model)
    return model


@torch.no_grad()
def look_back(
    model: LlamaForCausalLM, pairs: int = 6, constant: float = 0.1, strength: float = 1.7
) -> None:
    """Make the first head attend to the previous token, which is the slow half of learning to copy.

    One hidden dimension is the same for every token; from it the head's query and key get the
    `pairs` fastest rotary pairs, the query turned back by one position, so that q_m . k_n is a sum
    of cos((m - n - 1) theta_i).
    """
    embedding, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    theta = model.model.rotary_emb.inv_freq[:pairs]
    half = attention.head_dim // 2
    embedding[:, 0] = constant
    attention.k_proj.weight[:pairs, 0] = strength
    attention.q_proj.weight[:pairs, 0] = strength * theta.cos()
    attention.q_proj.weight[half : half + pairs, 0] = -strength * theta.sin()


def answer_loss(model: LlamaForCausalLM, ids: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the taught tokens, and the hidden states [M, H] they were predicted
    from.

    The lm_head runs on their positions only.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][
            taught[:, 1:]
        ]
        logits = model.lm_head(hidden)
    return F.cross_entropy(logits.float(), ids[:, 1:][taught[:, 1:]]), hidden


def new_heads(model: LlamaForCausalLM, foresight: Foresight) -> MedusaHeads:
    """The heads of the last steps, untrained."""
    config = model.config
    shape = MedusaConfig(
        foresight.num_heads,
        foresight.layers,
        config.hidden_size,
        config.vocab_size,
        own_lm_head=False,
    )
    return MedusaHeads.from_lm_head(model.lm_head, shape)


def foresight_loss(
    heads: MedusaHeads, hidden: Tensor, lm_head: Tensor, ids: Tensor, taught: Tensor, decay: float
) -> Tensor:
    """Eq. 1 over the taught tokens that come after those `hidden` [M, H] predicts; lm_head [V,
    H].
    """
    labels = ids.masked_fill(~taught, -100)
    ahead = F.pad(labels[:, 2:], (0, heads.config.num_heads), value=-100).unfold(
        1, heads.config.num_heads, 1
    )
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = heads(hidden, lambda states: F.linear(states, lm_head))
    return medusa1_loss(logits, ahead[taught[:, 1:]], decay)


def step_loss(
    model: LlamaForCausalLM,
    heads: MedusaHeads,
    foresight: Foresight,
    step: int,
    ids: Tensor,
    taught: Tensor,
) -> tuple[Tensor, Tensor]:
    """What a step descends, and the cross-entropy of the next token that is part of it."""
    loss, hidden = answer_loss(model, ids, taught)
    if step < foresight.begin:
        return loss, loss
    seen, lm_head, weight = hidden, model.lm_head.weight, foresight.weight(step)
    if not weight:
        seen, lm_head = seen.detach(), lm_head.detach()
    ahead = foresight_loss(heads, seen, lm_head, ids, taught, foresight.decay)
    return loss + (weight or 1.0) * ahead, loss


def optimizers(
    model: LlamaForCausalLM, heads: MedusaHeads, recipe: Recipe
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms, another for the last
    steps' heads.
    """
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            hidden,
            lr=recipe.muon_lr,
            momentum=0.95,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.AdamW(
            heads.parameters(), lr=recipe.foresight.lr, betas=(0.9, 0.95), weight_decay=0.0
        ),
    ]


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    checkpoint: Path,
    report_every: int = 50,
    check_every: int = 500,
) -> dict[str, Any]:
    """Train a backbone and save it in `folder`; an interrupted run goes on from its last
    checkpoint.

    Returns:
        What the model card tells: the recipe, tokens seen, seconds, losses and held-out accuracies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(recipe, tokenizer).to(device)
    heads = new_heads(model, recipe.foresight)
    opts = optimizers(model, heads, recipe)
    start, tokens, seconds, losses = 0, 0, 0.0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        for opt, state in zip(opts, saved["optimizers"], strict=True):
            opt.load_state_dict(state)
        start, tokens, seconds, losses = (
            saved[key] for key in ("step", "tokens", "seconds", "losses")
        )
    batches = stream(recipe, tokenizer, start)
    base_lr = [recipe.muon_lr, recipe.adam_lr, recipe.foresight.lr]
    running, since = 0.0, time.perf_counter()
    for step in range(start, recipe.steps):
        for opt, lr in zip(opts, base_lr, strict=True):
            for group in opt.param_groups:
                group["lr"] = lr * recipe.rate(step)
        ids, taught = collate(next(batches), tokenizer.pad_token_id)
        ids, taught = ids.to(device), taught.to(device)
        total, loss = step_loss(model, heads, recipe.foresight, step, ids, taught)
        total.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        tokens += ids.numel()
        running += loss.item()
        if (step + 1) % report_every == 0:
            seconds += time.perf_counter() - since
            since = time.perf_counter()
            losses.append((step + 1, running / report_every))
            print(
                f"step {step + 1}/{recipe.steps}  loss {losses[-1][1]:.4f}  tokens "
                f"{tokens / 1e6:.2f}M  "
                f"{tokens / seconds:.0f} tokens/s  {seconds / 60:.1f} min",
                flush=True,
            )
            running = 0.0
            torch.save(
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizers": [opt.state_dict() for opt in opts],
                    "step": step + 1,
                    "tokens": tokens,
                    "seconds": seconds,
                    "losses": losses,
                },
                checkpoint,
            )
        if (step + 1) % check_every == 0:
            print("held-out accuracy", accuracy(model, tokenizer, 16), flush=True)
            since = time.perf_counter()
    accuracies = accuracy(model, tokenizer, 100)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "recipe": asdict(recipe),
        "tokens": tokens,
        "seconds": seconds,
        "losses": losses,
        "accuracy": accuracies,
    }


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[Task],
    batch_size: int = 64,
    max_new_tokens: int = 320,
) -> list[str]:
    """The model's own greedy answers, in the order of the tasks."""
    order = sorted(
        range(len(tasks)), key=lambda index: (tasks[index].category, len(tasks[index].prompt))
    )
    texts = [""] * len(tasks)
    for begin in range(0, len(order), batch_size):
        part = order[begin : begin + batch_size]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": tasks[index].prompt}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for index in part
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(
            model.device
        )
        output = model.generate(
            **{key: inputs[key] for key in ("input_ids", "attention_mask")},
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        decoded = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for index, text in zip(part, decoded, strict=True):
            texts[index] = text
    return texts


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int, first_seed: int = 0
) -> dict[str, float]:
    """Share of held-out tasks that greedy decoding answers right, per checked category."""
    tasks = [
        make_task(name, first_seed + seed, "test") for name in CATEGORIES for seed in range(count)
    ]
    right: dict[str, list[bool]] = {}
    for task, text in zip(tasks, answers(model, tokenizer, tasks), strict=True):
        verdict = check(task, text)
        if verdict is not None:
            right.setdefault(task.category, []).append(verdict)
    return {name: sum(verdicts) / len(verdicts) for name, verdicts in right.items()}
