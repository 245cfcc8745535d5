"""An LLM at work: writes prompts (Fig. 10), judges them (Fig. 11) and extends the tree, over any chat engine.

An engine (`openai.OpenAIEngine`, `vllm_engine.VLLMEngine`) only answers messages; what is asked, how several
subjects share one message, and the journal that makes a killed run cheap are here, once for all of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from l2p_data.engines.journal import Journal
from l2p_data.engines.llm import PromptRequest
from l2p_data.engines.template import (
    ANSWER_SCHEMA,
    EXPANSION_SCHEMA,
    TEMPLATE_VERSION,
    VERDICT_SCHEMA,
    generation_list_message,
    generation_list_schema,
    generation_message,
)
from l2p_data.errors import DataError, checks

Message = tuple[str, int]
"""What is said to the model, and the seed of its answer."""


def fault(cause: str, *, may_pass: bool = False) -> str:
    """Return the answer to a message that could not be answered.

    Args:
        cause: becomes the record's `problem`.
        may_pass: asking again later could help (a server that is down); such an answer is not journaled.
    """
    return json.dumps(
        {"error": cause, "may_pass": True} if may_pass else {"error": cause}, ensure_ascii=False
    )


class ChatEngine(Protocol):
    """Anything that answers chat messages with schema-bound JSON."""

    @property
    def name(self) -> str:
        """The model, as it goes into `created_by`."""
        ...

    def ask(
        self, messages: Sequence[Message], schema: Mapping[str, Any], temperature: float
    ) -> Iterator[tuple[int, str]]:
        """Yield (index of the message, answer) as the answers come in, each index once.

        A message that cannot be answered gets a `fault`.

        Raises:
            DataError: no message can be answered: no server, no model.
        """
        ...


class ChatGenerator:
    """A `TextGenerator`, `Judge` and `Expander` over a chat engine.

    Args:
        engine: answers messages.
        temperature: of prompts and categories; verdicts are asked for at 0.
        subjects_per_message: how many subjects of one sub-class go into one message (the paper hands the LLM
            lists); 1 suits small models.
        journal: a folder or address for the answers. Whatever is asked again, in this run or after a crash,
            is read from there, bad answers too, so that a run that was killed loses at most what was in
            flight.
        on_progress: called with answers that are there and messages in all.
    """

    @checks
    def __init__(
        self,
        engine: ChatEngine,
        *,
        temperature: float = 0.9,
        subjects_per_message: int = 1,
        journal: str | Path | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if subjects_per_message < 1:
            raise DataError(f"subjects_per_message is {subjects_per_message}; it must be at least 1")
        if not 0 <= temperature <= 100:
            raise DataError(f"temperature is {temperature}; it must be a number from 0 to 100")
        self.engine, self.temperature, self.on_progress = engine, temperature, on_progress
        self.subjects_per_message = subjects_per_message
        self.journal = Journal(journal) if journal is not None else None

    @property
    def name(self) -> str:
        return f"llm:{self.engine.name}/template-{TEMPLATE_VERSION}"

    def generate(self, requests: Sequence[PromptRequest]) -> list[str]:
        """Return one answer per request, in order."""
        if self.subjects_per_message == 1:
            messages = [(generation_message(request), request.seed) for request in requests]
            return self._ask(messages, ANSWER_SCHEMA, self.temperature)
        answers = [""] * len(requests)
        for size, lists in _lists(requests, self.subjects_per_message).items():
            messages = [
                (generation_list_message([requests[index] for index in part]), requests[part[0]].seed)
                for part in lists
            ]
            replies = self._ask(messages, generation_list_schema(size), self.temperature)
            for part, reply in zip(lists, replies, strict=True):
                for index, answer in zip(part, _split(reply, size), strict=True):
                    answers[index] = answer
        return answers

    def judge(self, messages: Sequence[str]) -> list[str]:
        """Return one verdict per message, in order, without randomness."""
        return self._ask([(message, 0) for message in messages], VERDICT_SCHEMA, 0.0)

    def expand(self, messages: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Return new names for branches of the tree, one answer per message, in order."""
        return self._ask(list(zip(messages, seeds, strict=True)), EXPANSION_SCHEMA, self.temperature)

    def _ask(self, messages: Sequence[Message], schema: Mapping[str, Any], temperature: float) -> list[str]:
        """Return answers in order, from the journal as far as it has them."""
        keys = [(self.engine.name, text, seed, temperature) for text, seed in messages]
        known = self.journal.find(keys) if self.journal is not None else {}
        missing = [index for index in range(len(messages)) if index not in known]
        answers = dict(known)
        asked = self.engine.ask([messages[i] for i in missing], schema, temperature) if missing else ()
        try:
            for position, answer in asked:
                index = missing[position]
                answers[index] = answer
                if self.journal is not None and not _may_pass(answer):
                    self.journal.add(keys[index], answer)
                if self.on_progress is not None:
                    self.on_progress(len(answers), len(messages))
        except (Exception, KeyboardInterrupt):
            if self.journal is not None:  # what came in before the server went is paid for
                self.journal.flush()
            raise
        if self.journal is not None:
            self.journal.flush()
        return [answers[index] for index in range(len(messages))]


def _may_pass(answer: str) -> bool:
    return answer.startswith('{"error"') and answer.endswith('"may_pass": true}')


def _lists(requests: Sequence[PromptRequest], most: int) -> dict[int, list[list[int]]]:
    """Return requests that can share a message (one sub-class, language and kind), as indices, by list
    length.
    """

    def place(index: int) -> tuple[str, str, str, str]:
        category = requests[index].category
        return (category.superclass, category.subclass, category.language, requests[index].kind)

    lists: dict[int, list[list[int]]] = {}
    for _, group in groupby(sorted(range(len(requests)), key=place), key=place):
        members = list(group)
        for start in range(0, len(members), most):
            part = members[start : start + most]
            lists.setdefault(len(part), []).append(part)
    return lists


def _split(reply: str, size: int) -> list[str]:
    """Return an answer to a list of subjects -> one answer per subject; what is missing says so."""
    try:
        content = json.loads(reply)
    except (ValueError, RecursionError):
        return [reply] * size
    prompts = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list) or len(prompts) != size:
        cause = content.get("error") if isinstance(content, dict) else None
        cause = cause or f'answer has no list of {size} under "prompts"'
        return [fault(str(cause))] * size
    return [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
