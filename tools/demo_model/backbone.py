"""The embedded model's backbone: a small Llama trained from scratch on seeded tasks.

The hidden matrices are trained with Muon, which needs about half the tokens that AdamW needs at
this scale. In the last part of the run Medusa heads train together with the backbone, so that its
hidden states also predict tokens after the next. The shipped heads start from these, and are then
trained on the frozen backbone.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from medusa.core.heads import MedusaConfig, MedusaHeads
from medusa.demo.tasks import CATEGORIES, Task, check, make_task
from medusa.training.losses import medusa1_loss

from .recipe import BackboneRecipe, Foresight
from .stream import collate, stream


def build(recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return the untrained backbone."""
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
    """Make the first attention head attend to the previous token, in place.

    Learning this by itself is the slow half of learning to copy. One hidden dimension is set to the
    same value for every token. From it the head's query and key get the `pairs` fastest rotary
    pairs, the query turned back by one position, so that q_m . k_n is a sum of
    cos((m - n - 1) theta_i), which is largest at n = m - 1.

    Args:
        pairs: number of rotary pairs used.
        constant: value of the constant hidden dimension.
        strength: size of the query and key weights.
    """
    embedding, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    theta = model.model.rotary_emb.inv_freq[:pairs]
    half = attention.head_dim // 2
    embedding[:, 0] = constant
    attention.k_proj.weight[:pairs, 0] = strength
    attention.q_proj.weight[:pairs, 0] = strength * theta.cos()
    attention.q_proj.weight[half : half + pairs, 0] = -strength * theta.sin()


def answer_loss(model: LlamaForCausalLM, ids: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of the taught tokens, and the hidden states before them [M, H].

    The lm_head runs only on the positions before taught tokens.

    Args:
        ids: [B, S].
        taught: [B, S] True where the model learns to produce the token.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][
            taught[:, 1:]
        ]
        logits = model.lm_head(hidden)
    return F.cross_entropy(logits.float(), ids[:, 1:][taught[:, 1:]]), hidden


def new_heads(model: LlamaForCausalLM, foresight: Foresight) -> MedusaHeads:
    """Return the untrained heads that train with the backbone in the last steps."""
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
    """Return equation 1 over the taught tokens that follow those predicted from `hidden`.

    Args:
        hidden: [M, H] hidden states before the taught tokens, as `answer_loss` returns them.
        lm_head: [V, H] weight of the lm_head.
        ids, taught: [B, S] as of `answer_loss`.
        decay: lambda_k = decay^k.
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
    """Return the loss that a step minimises, and the next token's cross-entropy within it.

    The heads join in at `foresight.begin`. The backbone takes no gradient from them until its
    weight lambda_0 is above zero.
    """
    loss, hidden = answer_loss(model, ids, taught)
    if step < foresight.begin:
        return loss, loss
    seen, lm_head, weight = hidden, model.lm_head.weight, foresight.weight(step)
    if not weight:
        seen, lm_head = seen.detach(), lm_head.detach()
    ahead = foresight_loss(heads, seen, lm_head, ids, taught, foresight.decay)
    return loss + (weight or 1.0) * ahead, loss


def optimizers(
    model: LlamaForCausalLM, heads: MedusaHeads, recipe: BackboneRecipe
) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, AdamW for embeddings and norms, AdamW for the heads."""
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


@dataclass
class Progress:
    """How far a training run has come.

    Attributes:
        step: number of finished steps.
        tokens: tokens read, padding included.
        seconds: training time, held-out checks excluded.
        losses: pairs of a step and the mean loss of the steps before it.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


class BackboneTrainer:
    """A training run of the backbone, resumed from its checkpoint if there is one.

    Args:
        recipe: everything that decides the weights.
        tokenizer: the backbone's tokenizer.
        checkpoint: file in which the state is kept.
    """

    def __init__(
        self, recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerBase, checkpoint: Path
    ):
        self.recipe, self.tokenizer, self.checkpoint = recipe, tokenizer, checkpoint
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build(recipe, tokenizer).to(self.device)
        self.heads = new_heads(self.model, recipe.foresight)
        self.optimizers = optimizers(self.model, self.heads, recipe)
        self.progress = Progress()
        if checkpoint.exists():
            self._load()

    def run(self, report_every: int, check_every: int) -> None:
        """Train up to the recipe's last step.

        Args:
            report_every: steps between two reports, each with a checkpoint.
            check_every: steps between two checks of the held-out accuracy.
        """
        batches = stream(self.recipe, self.tokenizer, self.progress.step)
        total, since = 0.0, time.perf_counter()
        while self.progress.step < self.recipe.steps:
            total += self._train_step(*collate(next(batches), self.tokenizer.pad_token_id))
            if self.progress.step % report_every == 0:
                self.progress.seconds += time.perf_counter() - since
                since = time.perf_counter()
                self.progress.losses.append((self.progress.step, total / report_every))
                total = 0.0
                self._report()
                self._save()
            if self.progress.step % check_every == 0:
                print("held-out accuracy", accuracy(self.model, self.tokenizer, 16), flush=True)
                since = time.perf_counter()  # the check is no training time

    def _train_step(self, ids: Tensor, taught: Tensor) -> float:
        """Take one step on a batch; return the cross-entropy of its next tokens."""
        recipe, step = self.recipe, self.progress.step
        peaks = (recipe.muon_lr, recipe.adam_lr, recipe.foresight.lr)
        for optimizer, peak in zip(self.optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * recipe.rate(step)
        ids, taught = ids.to(self.device), taught.to(self.device)
        total, loss = step_loss(self.model, self.heads, recipe.foresight, step, ids, taught)
        total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += ids.numel()
        return loss.item()

    def _report(self) -> None:
        progress = self.progress
        print(
            f"step {progress.step}/{self.recipe.steps}  loss {progress.losses[-1][1]:.4f}  tokens "
            f"{progress.tokens / 1e6:.2f}M  {progress.tokens / progress.seconds:.0f} tokens/s  "
            f"{progress.seconds / 60:.1f} min",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **vars(self.progress),
        }
        torch.save(state, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})


def train_backbone(
    recipe: BackboneRecipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    checkpoint: Path,
    report_every: int = 50,
    check_every: int = 500,
) -> dict[str, Any]:
    """Train a backbone and save it in `folder`; an interrupted run resumes from its checkpoint.

    Returns:
        The figures of the model card: recipe, tokens, seconds, losses and held-out accuracies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = BackboneTrainer(recipe, tokenizer, checkpoint)
    trainer.run(report_every, check_every)
    accuracies = accuracy(trainer.model, tokenizer, 100)
    trainer.model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "recipe": asdict(recipe),
        "tokens": trainer.progress.tokens,
        "seconds": trainer.progress.seconds,
        "losses": trainer.progress.losses,
        "accuracy": accuracies,
    }


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[Task],
    batch_size: int = 64,
    max_new_tokens: int = 320,
) -> list[str]:
    """Return the model's own greedy answers as text, in the order of the tasks."""
    # batches of one category and similar length need little padding
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
    """Return the share of held-out tasks that greedy decoding answers right, by category.

    Categories without a checker are left out.

    Args:
        count: number of tasks of each category.
        first_seed: seed of the first of them.
    """
    tasks = [
        make_task(name, first_seed + seed, "test") for name in CATEGORIES for seed in range(count)
    ]
    right: dict[str, list[bool]] = {}
    for task, text in zip(tasks, greedy_answers(model, tokenizer, tasks), strict=True):
        verdict = check(task, text)
        if verdict is not None:
            right.setdefault(task.category, []).append(verdict)
    return {name: sum(verdicts) / len(verdicts) for name, verdicts in right.items()}
