"""Self-distillation's data (section 2.3.2): a model answers seed prompts itself, so that heads learn what it would say.

A conversation is a generator that asks for turns; whoever drives it, this library's engine a batch at a time or a
server with several in flight, sends them back. Finished conversations are appended, one line each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from ..pretrained import MedusaModel
from .chats import Encoder
from .fields import Messages, read_asked
from .records import read_records

RETRIES = 6
"""Tries of a request to a server, with pauses of 1, 2, 4, ... seconds and a bit between them."""


@dataclass(frozen=True)
class Settings:
    """What decides the text of the data.

    Attributes:
        model: name of the model that answers.
        temperature: 0 answers greedily; the paper samples at 0.3.
        seed: of sampling; each turn of each conversation has a stream of its own.
        max_new_tokens: longest turn; one that is cut off is left out, and its conversation ends before it.
        self_talk: turns that the model asks itself after the seed's own.
    """

    model: str
    temperature: float = 0.3
    seed: int = 0
    max_new_tokens: int = 1024
    self_talk: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.max_new_tokens < 1 or self.self_talk < 0:
            raise ValueError("max_new_tokens must be positive and self_talk not negative")


@dataclass(frozen=True)
class Ask:
    """A turn that a conversation waits for.

    Attributes:
        chat: what was said so far.
        role: who speaks next: "assistant", or "user" in self-talk.
        key: of the conversation and turn, for randomness of its own.
    """

    chat: Messages
    role: str
    key: str


@dataclass(frozen=True)
class Turn:
    """What came of an `Ask`: the text, None where it was cut off, and how many tokens it took."""

    text: str | None
    tokens: int


@dataclass
class Progress:
    """What a run has done."""

    finished: int = 0
    left_out: int = 0
    tokens: int = 0
    refused: list[str] = field(default_factory=list)


Conversation = Generator[Ask, Turn, Messages]


class Engine(Protocol):
    """Drives conversations to their end."""

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Iterator[tuple[str, Messages | Exception, int]]:
        """The name of each finished conversation, what it came to or what went wrong, and the tokens it took."""


def conversation(name: str, seed: Messages, self_talk: int) -> Conversation:
    """The seed's user turns in order, each answered, then turns that the model asks itself."""
    chat: Messages = [turn for turn in seed if turn["role"] == "system"]
    asked = [turn for turn in seed if turn["role"] == "user"]
    for number in range(len(asked) + self_talk):
        if number < len(asked):
            question = asked[number]
        else:
            told = yield Ask(chat, "user", f"{name}/{number}/user")
            if not told.text:
                break
            question = {"role": "user", "content": told.text}
        answer = yield Ask([*chat, question], "assistant", f"{name}/{number}/assistant")
        if not answer.text:
            break
        chat = [*chat, question, {"role": "assistant", "content": answer.text}]
    return chat


class OwnEngine:
    """A model here answers, a batch of conversations turn by turn.

    Args:
        batch_size: conversations at once.
    """

    def __init__(self, model: MedusaModel, tokenizer: PreTrainedTokenizerBase, settings: Settings, batch_size: int):
        self.model, self.tokenizer, self.settings, self.batch_size = model, tokenizer, settings, batch_size
        self.encoder = Encoder(tokenizer)
        if settings.self_talk and not self.encoder.template:
            raise ValueError("self-talk needs a chat template, and this tokenizer has none")
        config = model.base.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id, *(config if isinstance(config, list) else [config])} - {None}

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Iterator[tuple[str, Messages | Exception, int]]:
        for begin in range(0, len(conversations), self.batch_size):
            talking = [(name, each, next(each), 0) for name, each in conversations[begin : begin + self.batch_size]]
            while talking:
                turns = self.answer([ask for _, _, ask, _ in talking])
                going = []
                for (name, each, _, tokens), turn in zip(talking, turns, strict=True):
                    tokens += turn.tokens
                    try:
                        going.append((name, each, each.send(turn), tokens))
                    except StopIteration as ended:
                        yield name, ended.value, tokens
                talking = going

    def answer(self, asks: Sequence[Ask]) -> list[Turn]:
        """A turn for each; prompts that leave no room are answered with nothing."""
        prompts = [self._prompt(ask) for ask in asks]
        room = getattr(self.model.base.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        wanted = [place for place, prompt in enumerate(prompts) if len(prompt) + 1 < room]
        turns = [Turn(None, 0)] * len(asks)
        if not wanted:
            return turns
        width = max(len(prompts[place]) for place in wanted)
        ids = torch.zeros(len(wanted), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, place in enumerate(wanted):
            ids[line, width - len(prompts[place]) :] = torch.tensor(prompts[place])
            mask[line, width - len(prompts[place]) :] = 1
        longest = min(self.settings.max_new_tokens, room - width)
        output = self.model.generate(
            ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=max(1, longest),
            **self._sampling([asks[place].key for place in wanted]),
        )
        for place, row in zip(wanted, output[:, width:].tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in self.ends), None)
            text = None if end is None else self.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
            turns[place] = Turn(text, longest if end is None else end + 1)
        return turns

    def _sampling(self, keys: list[str]) -> dict[str, Any]:
        if not self.settings.temperature:
            return {"do_sample": False}
        seeds = [int(hashlib.sha256(f"{self.settings.seed}/{key}".encode()).hexdigest()[:12], 16) for key in keys]
        generators = [torch.Generator(self.model.device).manual_seed(seed) for seed in seeds]
        return {"do_sample": True, "temperature": self.settings.temperature, "generator": generators}

    def _prompt(self, ask: Ask) -> list[int]:
        if ask.role == "assistant":
            return self.encoder.prompt(ask.chat)
        here = "A user stands here"
        text = self.tokenizer.apply_chat_template([*ask.chat, {"role": "user", "content": here}], tokenize=False)
        before = str(text)[: str(text).rindex(here)]
        return list(self.tokenizer(before, add_special_tokens=False)["input_ids"])


class Server:
    """An OpenAI-compatible server answers, several conversations in flight.

    Args:
        address: up to and with the version, such as http://localhost:8000/v1.
        key: sent as bearer token.
        in_flight: conversations at once.
        timeout: seconds a request may take.
    """

    def __init__(
        self, address: str, settings: Settings, key: str | None = None, in_flight: int = 8, timeout: float = 600
    ):
        if settings.self_talk:
            raise ValueError("self-talk writes the user's turns with the model here, which no chat server offers")
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"a server's address begins with http:// or https://, got {address}")
        self.address, self.settings, self.timeout = address.rstrip("/"), settings, timeout
        self.key = key or os.environ.get("OPENAI_API_KEY")
        self.in_flight = in_flight

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Iterator[tuple[str, Messages | Exception, int]]:
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.in_flight)
        try:
            waiting = {pool.submit(self._whole, each, stop): name for name, each in conversations}
            for done in as_completed(waiting):
                error = done.exception()
                if isinstance(error, (OSError, ValueError)) and not isinstance(error, ConnectionError):
                    yield waiting[done], error, 0
                else:
                    yield waiting[done], *done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _whole(self, talking: Conversation, stop: threading.Event) -> tuple[Messages, int]:
        ask, tokens = next(talking), 0
        while True:
            if stop.is_set():
                raise InterruptedError("stopped")
            turn = self.answer(ask)
            tokens += turn.tokens
            try:
                ask = talking.send(turn)
            except StopIteration as ended:
                return ended.value, tokens

    def answer(self, ask: Ask) -> Turn:
        """A turn, tried again while the server is overloaded or away.

        Raises:
            ConnectionError: it stays away.
            OSError: it stays overloaded, or fails at this request again and again.
            ValueError: it refuses the request; says what it said.
        """
        settings = self.settings
        seed = int(hashlib.sha256(f"{settings.seed}/{ask.key}".encode()).hexdigest()[:7], 16)
        wanted = {
            "model": settings.model,
            "messages": ask.chat,
            "temperature": settings.temperature,
            "max_tokens": settings.max_new_tokens,
            "seed": seed,
        }
        told = self._post("/chat/completions", wanted)
        try:
            choice = told["choices"][0]
            text, cut = choice["message"].get("content") or "", choice.get("finish_reason") == "length"
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.address} answers with something else: {json.dumps(told)[:300]}") from None
        tokens = int((told.get("usage") or {}).get("completion_tokens") or 0)
        return Turn(None if cut else text.strip(), tokens)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        problem: OSError
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        for tried in range(1, RETRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return dict(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:300]
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise ValueError(f"{self.address} refuses ({error.code}): {said}") from None
                problem, pause = OSError(f"{error.code}: {said}"), error.headers.get("Retry-After", "")
            except TimeoutError as error:
                problem, pause = error, ""
            except (urllib.error.URLError, ConnectionError) as error:
                problem, pause = ConnectionError(str(error)), ""
            if tried < RETRIES:
                wait = float(pause) if pause.isdigit() else 2.0 ** (tried - 1)
                time.sleep(wait + random.random())
        raise type(problem)(f"{self.address} does not answer after {RETRIES} tries: {problem}")


def read_seeds(source: str, limit: int | None = None, split: str = "train") -> Iterator[tuple[str, Messages]]:
    """Seed conversations by name (their place in the source and a digest): the user's turns count, answers do not.

    Raises:
        ValueError: a record is malformed, or nobody asks in it.
    """
    for record in itertools.islice(read_records(source, split), limit):
        asked = read_asked(record)
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        yield f"{record.place}, {digest}", asked


def distill(
    engine: Engine,
    seeds: Iterable[tuple[str, Messages]],
    settings: Settings,
    output: Path,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Append a line for each seed to `output`; those that it has already are passed over.

    Raises:
        ValueError: the file was begun with other settings.
        OSError: a server stays away, or the disk is full; what is finished is kept.
    """
    done, seeds = _begin(output, settings), list(seeds)
    waiting = [(name, conversation(name, seed, settings.self_talk)) for name, seed in seeds if name not in done]
    progress = Progress(finished=len(seeds) - len(waiting))
    watch(progress)
    with output.open("a", encoding="utf-8") as file, _left_out(output).open("a", encoding="utf-8") as left_out:
        for name, found, tokens in engine.drive(waiting):
            progress.tokens += tokens
            if isinstance(found, Exception):
                progress.refused.append(f"{name}: {found}")
            else:
                answered = any(turn["role"] == "assistant" for turn in found)
                progress.finished += 1
                progress.left_out += not answered
                told = {"id": name, **({"messages": found} if answered else {})}
                line = file if answered else left_out
                line.write(json.dumps(told, ensure_ascii=False) + "\n")
                line.flush()
            watch(progress)
    return progress


def _begin(output: Path, settings: Settings) -> set[str]:
    """The names that the file has already; a line that was cut off while it was written is removed."""
    told, beside = asdict(settings), output.with_name(output.name + ".settings.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_file():
        if not beside.is_file():
            raise ValueError(f"{output} is there, and not by medusa distill: take another --output")
        there = json.loads(beside.read_text())
        other = [name for name in told if there.get(name) != told[name]]
        if other:
            raise ValueError(f"{output} was begun with other settings ({', '.join(other)}): take another --output")
    beside.write_text(json.dumps(told) + "\n")
    return {name for file in (output, _left_out(output)) for name in _names(file)}


def _left_out(output: Path) -> Path:
    """Where the names of conversations go that came to nothing: their first answer was cut off."""
    return output.with_name(output.name + ".left-out")


def _names(file: Path) -> list[str]:
    """The names in a file of finished lines; one that was cut off while it was written is removed."""
    if not file.is_file():
        return []
    whole = file.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        with file.open("r+b") as opened:
            opened.truncate(len(kept))
    return [json.loads(line)["id"] for line in kept.decode("utf-8").split("\n") if line]
