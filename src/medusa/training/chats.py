"""Chats out of records, and their token ids with what is learnt of them: the assistant's turns, nothing else."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .records import Record

Messages = list[dict[str, Any]]
IGNORED = -100
"""The label of a token that is read and not learnt, as in transformers."""
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
"""What ShareGPT and its kin call the roles; other names stay as they are."""
PROMPTS = ("prompt", "instruction", "question", "query")
RESPONSES = ("response", "completion", "output", "answer")


@dataclass(frozen=True)
class Example:
    """A text to learn from.

    Attributes:
        ids: token ids.
        labels: the same ids, `IGNORED` (-100) where a token is only read.

    Raises:
        ValueError: there are more or fewer labels than ids.
    """

    ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise ValueError(f"as many labels as ids are needed, got {len(self.labels)} and {len(self.ids)}")

    @classmethod
    def answered(cls, prompt: Sequence[int], answer: Sequence[int]) -> Example:
        """A prompt that is read and an answer that is learnt."""
        return cls([*prompt, *answer], [IGNORED] * len(prompt) + [*answer])

    def cut(self, length: int) -> Example:
        """The first `length` tokens."""
        return self if len(self.ids) <= length else Example(self.ids[:length], self.labels[:length])

    @property
    def learnt(self) -> int:
        """How many tokens are learnt; the first of a text, which nothing predicts, never is."""
        return sum(label != IGNORED for label in self.labels[1:])


def read_chat(record: Record) -> Messages | str:
    """The chat of a record, or its plain text.

    Records hold `messages` (role, content), `conversations` (from, value: ShareGPT), a prompt and a response under one
    of `PROMPTS` and `RESPONSES` (with `system` or `input` beside them, as Alpaca has it), or `text`.

    Raises:
        ValueError: it holds none of these, or what it holds is malformed; names place and field.
    """
    told = record.content
    if record.problem:
        raise ValueError(f"{record.place}: {record.problem}")
    if isinstance(told, str):
        return told
    if not isinstance(told, dict):
        raise ValueError(f"{record.place}: a record must be an object or a text, got {type(told).__name__}")
    if told.get("messages") is not None:
        return _turns(told["messages"], "messages", "role", "content", record.place)
    if told.get("conversations") is not None:
        return _turns(told["conversations"], "conversations", "from", "value", record.place)
    prompt, response = (next((name for name in names if name in told), None) for names in (PROMPTS, RESPONSES))
    if prompt and response:
        asked = "\n\n".join(str(told[name]) for name in (prompt, "input") if told.get(name))
        system = [{"role": "system", "content": str(told["system"])}] if told.get("system") else []
        turns = [("user", asked, prompt), ("assistant", told[response], response)]
        return system + [_turn(role, content, f"{record.place}: {name}") for role, content, name in turns]
    if isinstance(told.get("text"), str):
        return str(told["text"])
    raise ValueError(
        f"{record.place}: a record needs messages, conversations, a prompt with a response, or text; it has "
        f"{', '.join(map(str, told)) or 'nothing'}"
    )


def read_asked(record: Record) -> Messages:
    """A chat of which the user's turns count, answered or not; texts and single prompts are one question.

    Besides what `read_chat` reads there are `turns`, a list of questions, and prompts without a response.

    Raises:
        ValueError: nobody asks in it, or it is malformed.
    """
    told = record.content
    if isinstance(told, dict) and isinstance(told.get("turns"), list):
        chat: Messages | str = [{"role": "user", "content": str(turn)} for turn in told["turns"]]
    elif isinstance(told, dict) and not {"messages", "conversations"} & told.keys():
        asked = next((told[name] for name in (*PROMPTS, "text", "input") if told.get(name)), None)
        chat = read_chat(record) if asked is None else str(asked)
    else:
        chat = read_chat(record)
    chat = [{"role": "user", "content": chat}] if isinstance(chat, str) else chat
    if not any(turn["role"] == "user" for turn in chat):
        raise ValueError(f"{record.place}: nobody asks in this record")
    return chat


def _turns(told: Any, field: str, role: str, content: str, place: str) -> Messages:
    if not isinstance(told, list) or not told:
        raise ValueError(f"{place}: {field} must be a list of turns")
    turns = []
    for number, each in enumerate(told):
        where = f"{place}: {field}[{number}]"
        if not isinstance(each, dict) or role not in each or content not in each:
            raise ValueError(f"{where} needs {role} and {content}")
        turns.append({**each, **_turn(ROLES.get(each[role], each[role]), each[content], where)})
    return [{name: value for name, value in turn.items() if name not in ("from", "value")} for turn in turns]


def _turn(role: Any, content: Any, where: str) -> dict[str, Any]:
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{where} must hold texts, got {type(content if isinstance(role, str) else role).__name__}")
    return {"role": role, "content": content}


class Encoder:
    """Chats and texts to examples, in a tokenizer's chat template.

    Args:
        tokenizer: a fast one, because tokens must tell which characters they stand for.
        template: a chat template in place of the tokenizer's own.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} cannot tell which characters a token stands for: use a model with a "
                "fast tokenizer (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template
        self._ends = _ends(tokenizer)  # asking for a large vocabulary takes longer than encoding a chat
        self.marked = "{% generation" in str(self.template or "").replace("{%-", "{%").replace("{%  ", "{% ")

    def __call__(self, chat: Messages | str) -> Example:
        """Token ids, and labels for the assistant's turns with the token that ends each, or for the whole of a text.

        Raises:
            ValueError: the chat has no assistant's turn, or the template does not take it.
        """
        if isinstance(chat, str):
            ids = self.tokenizer(chat)["input_ids"]
            return Example(self._ended(ids), self._ended(ids))
        if not any(turn["role"] == "assistant" for turn in chat):
            raise ValueError("a chat without an assistant's turn teaches nothing")
        if not self.template:
            return self._untemplated(chat)
        return self._marked(chat) if self.marked else self._searched(chat)

    def prompt(self, chat: Messages) -> list[int]:
        """Token ids of a chat that waits for the assistant's turn."""
        return encode_prompt(self.tokenizer, chat, self.template)

    def _ended(self, ids: Sequence[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [*ids] if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _untemplated(self, chat: Messages) -> Example:
        """Turns behind one another; models without a template know no roles."""
        ids: list[int] = []
        labels: list[int] = []
        for number, turn in enumerate(chat):
            piece = self.tokenizer(turn["content"], add_special_tokens=number == 0)["input_ids"]
            learnt = turn["role"] == "assistant"
            piece = self._ended(piece) if learnt else piece
            ids += piece
            labels += piece if learnt else [IGNORED] * len(piece)
        return Example(ids, labels)

    def _marked(self, chat: Messages) -> Example:
        """By the template's own generation markers."""
        told = self.tokenizer.apply_chat_template(
            chat, chat_template=self.template, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, masks = told["input_ids"], told["assistant_masks"]
        return Example(ids, [token if mask else IGNORED for token, mask in zip(ids, masks, strict=True)])

    def _searched(self, chat: Messages) -> Example:
        """By where each assistant's turn stands in the rendered text."""
        text = self._render(chat)
        told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = told["input_ids"], told["offset_mapping"]
        labels = [IGNORED] * len(ids)
        for begin, end in self._spans(chat, text):
            inside = [
                place
                for place, (first, last) in enumerate(offsets)
                if last > begin and first < end and not text[first:begin].strip()
            ]
            after = inside[-1] + 1 if inside else len(ids)
            blank = next((n for n, (first, last) in enumerate(offsets[after:]) if text[first:last].strip()), 0)
            if after + blank < len(ids) and ids[after + blank] in self._ends:
                inside += range(after, after + blank + 1)
            for place in inside:
                labels[place] = ids[place]
        return Example(ids, labels)

    def _spans(self, chat: Messages, text: str) -> Iterator[tuple[int, int]]:
        """First and last character of what the model would write in each assistant's turn.

        It begins where the prompt for it ends and ends where the text stops changing with the turn's content. Where
        templates write a turn in another way than they prompt for it, it begins where the text starts changing.
        """
        for number, turn in enumerate(chat):
            if turn["role"] != "assistant":
                continue
            one, other = (
                self._render([*chat[:number], {**turn, "content": content}, *chat[number + 1 :]])
                for content in ("A stands here A", "B stands here B")
            )
            if one == other:
                continue  # the template leaves this turn out
            asked = self._render(chat[:number], add_generation_prompt=True) if number else ""
            changes = _common(one, other)
            begin = len(asked) if asked and text.startswith(asked) else changes
            after = _common(one[::-1], other[::-1])
            end = len(text) - after
            if end < begin or text[end:] != one[len(one) - after :] or text[:begin] != one[:begin]:
                raise ValueError("the chat template writes other turns differently when one changes")
            yield begin, end

    def _render(self, chat: Messages, **options: bool) -> str:
        return str(self.tokenizer.apply_chat_template(chat, chat_template=self.template, tokenize=False, **options))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, chat: Messages, template: str | None) -> list[int]:
    """Token ids of a chat that waits for the assistant's turn; without a template its turns behind one another."""
    if template:
        told = tokenizer.apply_chat_template(chat, chat_template=template, add_generation_prompt=True, return_dict=True)
    else:
        told = tokenizer("\n\n".join(turn["content"] for turn in chat))
    return list(told["input_ids"])


def digest(examples: Iterable[Example]) -> str:
    """Of all ids and labels, in their order."""
    told = hashlib.sha256()
    for example in examples:
        told.update(repr((example.ids, example.labels)).encode())
    return told.hexdigest()


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a turn: the tokenizer's, and those that models of the common families end theirs with."""
    known = {tokenizer.eos_token, "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>"}
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[token] for token in known if token in vocabulary}


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike)
