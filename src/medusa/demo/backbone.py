"""The embedded model's backbone: a small Llama trained from scratch on seeded tasks.

Three things matter more than size. Batches hold single tasks of similar length with the loss on the answers only:
packing several tasks into one row hides the copying that extraction and tables live on. The hidden matrices are trained
with Muon, which needs about half the tokens AdamW does at this scale. And copying is learnt first: attention that looks
for what followed the same token earlier did not form within 8 million tokens of tasks, but does within some hundred
steps of a drill on repeated random tokens, if one head looks at the previous token from the start.

At the end of the run, heads like Medusa's learn along with the backbone, so that its hidden states come to tell of more
than the next token. They are thrown away: the shipped ones are trained on the finished backbone, which stays as it is.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ..heads import MedusaConfig, MedusaHeads
from ..training.medusa1 import medusa1_loss
from .tasks import CATEGORIES, Task, check, make_task
from .variation import asks_for_columns, composed, equations, reasked, recombined, renamed, retold, reworded

COPYING = ("extraction", "tables")
"""Categories whose answers copy most of the prompt, and nothing of the question."""


@dataclass(frozen=True)
class Mixture:
    """What batches of tasks are made of.

    Attributes:
        shares: of each category among the tasks.
        varied: share of tasks with invented words.
        pieces: whether half of the invented words are pieces of the vocabulary, so that none is unlearnt.
        anew: share of varied extraction tasks whose text is put together fact by fact.
        reworded: share of varied extraction tasks whose text is shuffled and thinned.
        strange: share of facts in texts made anew that are in words which say nothing about them.
        retold: share of varied extraction tasks told in other templates than their own.
        recombined: share of varied extraction tasks told in sentences of several templates.
        reasked: share of varied `COPYING` tasks in which some words of the question are others.
        selected: how often a tables task for all columns is passed over, so that more ask for some.
        repeated: share of varied tables tasks in which many values are the same few words.
        equations: share of rows that are equations alone.
        drill: share of rows that are the drill's.
        conversations: share of rows that hold two or three tasks, so that a chat can go on after an answer.
    """

    shares: dict[str, float]
    varied: float = 0.7
    pieces: bool = False
    anew: float = 0.35
    reworded: float = 0.35
    strange: float = 0.0
    retold: float = 0.0
    recombined: float = 0.0
    reasked: float = 0.0
    selected: float = 0.0
    repeated: float = 0.0
    equations: float = 0.06
    drill: float = 0.0
    conversations: float = 0.06


FORM = Mixture(
    {"extraction": 0.26, "tables": 0.26, "sql": 0.12, "math": 0.14, "code": 0.14, "writing": 0.08},
)
"""First what answers look like."""
READING = Mixture(
    {"extraction": 0.31, "tables": 0.25, "sql": 0.10, "math": 0.17, "code": 0.11, "writing": 0.06},
    varied=0.8, pieces=True, anew=0.65, reworded=0.15, equations=0.10, drill=0.04, conversations=0.05,
)  # fmt: skip
"""Then more of what needs close reading: texts in words that no template has, words of any pieces, more sums."""
INFERRING = replace(READING, anew=0.6, reworded=0.25, strange=0.2)
"""Texts that do not say of every fact which it is: it is the one that is left, and looks like one."""
SELECTING = replace(INFERRING, anew=0.35, reworded=0.15, strange=0.15, retold=0.35, selected=0.6)
"""More ways to tell, and more tables that leave a column out."""
REPEATING = replace(SELECTING, repeated=0.4)
"""Tables in which the same first name or city stands in several rows."""
HARDEST = replace(
    REPEATING,
    shares={"extraction": 0.40, "tables": 0.25, "sql": 0.08, "math": 0.15, "code": 0.07, "writing": 0.05},
    varied=0.9, anew=0.4,
)  # fmt: skip
"""Mostly what is still wrong."""
RECOMBINING = replace(HARDEST, anew=0.3, retold=0.1, reworded=0.1, recombined=0.4, strange=0.25)
"""Texts made of sentences from many."""
RETELLING = replace(
    RECOMBINING,
    shares={"extraction": 0.42, "tables": 0.28, "sql": 0.07, "math": 0.13, "code": 0.06, "writing": 0.04},
    anew=0.12, retold=0.48, reworded=0.05, recombined=0.25, strange=0.2,
)  # fmt: skip
"""Mostly the tellings, a hundred of each kind."""
LAST = replace(
    RETELLING,
    shares={"extraction": 0.42, "tables": 0.20, "sql": 0.08, "math": 0.14, "code": 0.10, "writing": 0.06},
)
"""Three hundred of each, and again more of the other tasks."""
REASKING = replace(
    LAST,
    shares={"extraction": 0.42, "tables": 0.22, "sql": 0.08, "math": 0.12, "code": 0.10, "writing": 0.06},
    reasked=0.5,
)
"""Words of the question are not words of the text."""
EVEN = replace(REASKING, shares=dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES)), varied=0.6)
"""For the heads: as many tasks of each category, with words that they have not learnt by heart."""


@dataclass(frozen=True)
class Foresight:
    """The last steps' additional loss, of heads that predict the tokens after the next (eq. 2's).

    Attributes:
        steps: the step from which the heads learn, on hidden states that take no gradient from them, and the step from
            which the backbone learns with them.
        weight: lambda_0 of eq. 2.
        decay: lambda_k = decay^k of eq. 1.
        num_heads: how many tokens after the next.
        layers: residual layers of each head; all share the lm_head.
        lr: AdamW's peak for the heads.
    """

    steps: tuple[int, int] = (14950, 15050)
    weight: float = 0.03
    decay: float = 0.8
    num_heads: int = 5
    layers: int = 3
    lr: float = 6e-3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the task generator."""

    seed: int = 0
    vocab_size: int = 2048
    hidden_size: int = 256
    layers: int = 6
    intermediate_size: int = 704
    context: int = 2048
    batch_tokens: int = 6144
    rates: tuple[tuple[int, float], ...] = (
        (0, 0.01),
        (100, 1.0),
        (4080, 1.0),
        (4950, 0.680),
        (7035, 0.680),
        (7250, 0.638),
        (7303, 0.638),
        (10900, 0.0),
        (11000, 0.35),
        (13900, 0.0),
        (13950, 0.3),
        (14950, 0.0),
        (15000, 0.3),
        (15850, 0.0),
    )
    """Learning rates as shares of the peak, each with its step, straight lines between; the last step is the end."""
    drill_steps: int = 650
    equation_steps: tuple[int, int] = (1250, 1400)
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    mixtures: tuple[tuple[int, Mixture], ...] = (
        (0, FORM),
        (2250, READING),
        (2800, INFERRING),
        (3150, SELECTING),
        (4050, REPEATING),
        (4950, HARDEST),
        (6200, RECOMBINING),
        (7250, RETELLING),
        (10900, LAST),
        (13900, REASKING),
    )
    """Each mixture with the step it comes in at."""
    foresight: Foresight = Foresight()

    @property
    def steps(self) -> int:
        return self.rates[-1][0]

    def rate(self, step: int) -> float:
        """The learning rate as a share of its peak."""
        steps, shares = zip(*self.rates, strict=True)
        return float(np.interp(step, steps, shares))


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
def look_back(model: LlamaForCausalLM, pairs: int = 6, constant: float = 0.1, strength: float = 1.7) -> None:
    """Make the first head attend to the previous token, which is the slow half of learning to copy.

    One hidden dimension is the same for every token; from it the head's query and key get the `pairs` fastest rotary
    pairs, the query turned back by one position, so that q_m . k_n is a sum of cos((m - n - 1) theta_i).
    """
    embedding, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    theta = model.model.rotary_emb.inv_freq[:pairs]
    half = attention.head_dim // 2
    embedding[:, 0] = constant
    attention.k_proj.weight[:pairs, 0] = strength
    attention.q_proj.weight[:pairs, 0] = strength * theta.cos()
    attention.q_proj.weight[half : half + pairs, 0] = -strength * theta.sin()


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation, and for each whether the model is taught to produce it."""

    ids: list[int]
    taught: list[bool]


def encode(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> Row:
    """A conversation of (prompt, answer) turns; the answers and their end tokens are taught."""
    ids: list[int] = []
    taught: list[bool] = []
    for prompt, answer in turns:
        for text, teach in (
            (f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n", False),
            (f"{answer}<|end|>", True),
            ("\n", False),
        ):
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            taught += [teach] * len(piece)
    return Row(ids, taught)


def encode_equations(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> Row:
    """Equations, one a line, of which the results are taught."""
    ids: list[int] = []
    taught: list[bool] = []
    for asked, result in pairs:
        for text, teach in ((asked, False), (result, True), ("\n", False)):
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            taught += [teach] * len(piece)
    return Row(ids, taught)


def drill(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Iterator[list[Row]]:
    """Batches of random tokens said again: first a few of them four times, then longer runs twice, apart."""
    for step in range(recipe.drill_steps):
        if step < 0.74 * recipe.drill_steps:
            before, length, gap, times = 0, rng.randint(5, 12), 0, 4
        else:
            length, times, before, gap = rng.randint(8, 48), 2, rng.randint(0, 32), rng.randint(0, 32)
        yield [drill_row(tokenizer, rng, before, length, gap, times) for _ in range(32)]


def drill_row(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, before: int, length: int, gap: int, times: int
) -> Row:
    """`before` random tokens, then `length` said `times` times with `gap` others between; repetitions are taught."""
    drawn = rng.sample(range(len(tokenizer)), before + length + gap)
    first, said, other = drawn[:before], drawn[before : before + length], drawn[before + length :]
    ids = first + said + (other + said) * (times - 1)
    return Row(ids, [False] * (len(ids) - length * (times - 1) + 1) + [True] * (length * (times - 1) - 1))


def stream(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, pool: int = 1024) -> Iterator[list[Row]]:
    """Batches without end: the drill, then tasks by one mixture after the other.

    Between `Recipe.equation_steps` there are equations alone.
    """
    numbers, random_drill = random.Random(recipe.seed), drill(recipe, tokenizer, random.Random(recipe.seed))
    parts = [
        task_batches(recipe, mixture, tokenizer, random.Random(recipe.seed + place), pool, place * 1_000_000)
        for place, (_, mixture) in enumerate(recipe.mixtures)
    ]
    for step in itertools.count():
        if step < recipe.drill_steps:
            yield next(random_drill)
        elif step in range(*recipe.equation_steps):
            yield [encode_equations(tokenizer, equations(numbers)) for _ in range(40)]
        else:
            yield next(parts[sum(step >= begin for begin, _ in recipe.mixtures) - 1])


def varied_tasks(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, rng: random.Random, first_seed: int
) -> Iterator[Task]:
    """Training tasks without end, every one new; most are varied."""
    seeds = itertools.count(first_seed)
    names, weights = list(mixture.shares), list(mixture.shares.values())
    letters = sorted(piece for piece in tokenizer.get_vocab() if piece.isascii() and piece.isalpha())
    pieces = letters if mixture.pieces else []
    ways = composed, reworded, retold, recombined, None
    shares = mixture.anew, mixture.reworded, mixture.retold, mixture.recombined
    while True:
        category = rng.choices(names, weights)[0]
        task = make_task(category, next(seeds), "train")
        while category == "tables" and not asks_for_columns(task.prompt) and rng.random() < mixture.selected:
            task = make_task(category, next(seeds), "train")
        if rng.random() <= mixture.varied:
            repeated = category == "tables" and rng.random() < mixture.repeated
            prompt, answer = renamed(rng, task.prompt, task.answer, pieces, repeated)
            way = rng.choices(ways, (*shares, 1 - sum(shares)))[0] if category == "extraction" else None
            prompt = prompt if way is None else way(rng, prompt, answer, mixture.strange)
            # a mixture that reasks nothing draws nothing, so that its tasks stay those it was run with
            if category in COPYING and mixture.reasked and rng.random() < mixture.reasked:
                prompt = reasked(rng, prompt, answer)
            task = Task(category, prompt, answer, {})
        yield task


def task_batches(
    recipe: Recipe,
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    pool: int,
    first_seed: int,
) -> Iterator[list[Row]]:
    """Batches of rows of similar length."""
    tasks = varied_tasks(mixture, tokenizer, rng, first_seed)
    kinds = (mixture.equations, mixture.drill, 1 - mixture.equations - mixture.drill)

    def row() -> Row:
        kind = rng.choices(("equations", "drill", "tasks"), kinds)[0]
        if kind == "equations":
            return encode_equations(tokenizer, equations(rng))
        if kind == "drill":
            return drill_row(tokenizer, rng, rng.randint(0, 32), rng.randint(8, 48), rng.randint(0, 32), 2)
        turns = rng.choice((2, 3)) if rng.random() < mixture.conversations else 1
        return encode(tokenizer, [(task.prompt, task.answer) for task in itertools.islice(tasks, turns)])

    while True:
        rows = sorted((row() for _ in range(pool)), key=lambda row: len(row.ids))
        batches: list[list[Row]] = [[]]
        for each in rows:
            if (len(batches[-1]) + 1) * len(each.ids) > recipe.batch_tokens and batches[-1]:
                batches.append([])
            batches[-1].append(each)
        rng.shuffle(batches)
        yield from batches


def collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Ids [B, S] padded on the right, where causal attention needs no mask, and what is taught [B, S]."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    taught = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        taught[index, : len(row.ids)] = torch.tensor(row.taught)
    return ids, taught


def answer_loss(model: LlamaForCausalLM, ids: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the taught tokens, and the hidden states [M, H] they were predicted from.

    The lm_head runs on their positions only.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][taught[:, 1:]]
        logits = model.lm_head(hidden)
    return F.cross_entropy(logits.float(), ids[:, 1:][taught[:, 1:]]), hidden


def new_heads(model: LlamaForCausalLM, foresight: Foresight) -> MedusaHeads:
    """The heads of the last steps, untrained."""
    config = model.config
    shape = MedusaConfig(
        foresight.num_heads, foresight.layers, config.hidden_size, config.vocab_size, own_lm_head=False
    )
    return MedusaHeads.from_lm_head(model.lm_head, shape)


def foresight_loss(
    heads: MedusaHeads, hidden: Tensor, lm_head: Tensor, ids: Tensor, taught: Tensor, decay: float
) -> Tensor:
    """Eq. 1 over the taught tokens that come after those `hidden` [M, H] predicts; lm_head [V, H]."""
    labels = ids.masked_fill(~taught, -100)
    ahead = F.pad(labels[:, 2:], (0, heads.config.num_heads), value=-100).unfold(1, heads.config.num_heads, 1)
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = heads(hidden, lambda states: F.linear(states, lm_head))
    return medusa1_loss(logits, ahead[taught[:, 1:]], decay)


def step_loss(
    model: LlamaForCausalLM, heads: MedusaHeads, foresight: Foresight, step: int, ids: Tensor, taught: Tensor
) -> tuple[Tensor, Tensor]:
    """What a step descends, and the cross-entropy of the next token that is part of it."""
    loss, hidden = answer_loss(model, ids, taught)
    alone, joint = foresight.steps
    if step < alone:
        return loss, loss
    seen, lm_head = hidden, model.lm_head.weight
    if step < joint:
        seen, lm_head = seen.detach(), lm_head.detach()
    ahead = foresight_loss(heads, seen, lm_head, ids, taught, foresight.decay)
    return loss + foresight.weight * ahead, loss


def optimizers(model: LlamaForCausalLM, heads: MedusaHeads, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms, another for the last steps' heads."""
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
        torch.optim.AdamW(heads.parameters(), lr=recipe.foresight.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    checkpoint: Path,
    report_every: int = 50,
    check_every: int = 500,
) -> dict[str, Any]:
    """Train a backbone and save it in `folder`; an interrupted run goes on from its last checkpoint.

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
        start, tokens, seconds, losses = (saved[key] for key in ("step", "tokens", "seconds", "losses"))
    batches = stream(recipe, tokenizer)
    for _ in range(start):
        next(batches)
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
                f"step {step + 1}/{recipe.steps}  loss {losses[-1][1]:.4f}  tokens {tokens / 1e6:.2f}M  "
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
    order = sorted(range(len(tasks)), key=lambda index: (tasks[index].category, len(tasks[index].prompt)))
    texts = [""] * len(tasks)
    for begin in range(0, len(order), batch_size):
        part = order[begin : begin + batch_size]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": tasks[index].prompt}], tokenize=False, add_generation_prompt=True
            )
            for index in part
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        output = model.generate(
            **{key: inputs[key] for key in ("input_ids", "attention_mask")},
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        decoded = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(part, decoded, strict=True):
            texts[index] = text
    return texts


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int, first_seed: int = 0
) -> dict[str, float]:
    """Share of held-out tasks that greedy decoding answers right, per checked category."""
    tasks = [make_task(name, first_seed + seed, "test") for name in CATEGORIES for seed in range(count)]
    right: dict[str, list[bool]] = {}
    for task, text in zip(tasks, answers(model, tokenizer, tasks), strict=True):
        verdict = check(task, text)
        if verdict is not None:
            right.setdefault(task.category, []).append(verdict)
    return {name: sum(verdicts) / len(verdicts) for name, verdicts in right.items()}
