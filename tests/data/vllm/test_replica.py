"""One replica of vLLM without Ray around it: what its switches and errors really are."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from l2p_data.engines.template import ANSWER_SCHEMA, VERDICT_SCHEMA

pytest.importorskip("vllm")
from l2p_data.engines.vllm_engine import VLLMSettings, _Replica

SMALL = {"enforce_eager": True, "max_num_seqs": 8, "disable_log_stats": True}


@pytest.fixture(scope="module")
def replica(random_model: Path) -> Iterator[_Replica]:
    """Of random weights: it says whatever the grammar allows."""
    settings = VLLMSettings(model=random_model, max_tokens=48, max_model_len=256, engine_kwargs=SMALL)
    made = _Replica(str(random_model), settings, on_gpu=False)
    assert made.fault() is None
    yield made


def test_random_weights_write_no_blank_space_between_the_parts_of_an_object(replica: _Replica) -> None:
    """A model that likes blank space would write it up to max_tokens."""
    for schema in (ANSWER_SCHEMA, VERDICT_SCHEMA):
        answers = replica.answer([(f"Number {seed}.", seed) for seed in range(8)], json.dumps(schema), 1.5)
        for answer in answers:
            if "error" not in json.loads(answer):
                assert json.dumps(json.loads(answer), separators=(",", ":"), ensure_ascii=False) == answer
            else:
                assert "cut off at max_tokens" in answer and "blank space" not in answer


def test_messages_that_cannot_be_asked_cost_themselves_only(replica: _Replica) -> None:
    texts = ["Say hello.", "word " * 900, "", "灰色 ✓" * 5, "Say goodbye."]
    messages = [(text, seed) for seed, text in enumerate(texts)]
    answers = [json.loads(answer) for answer in replica.answer(messages, json.dumps(ANSWER_SCHEMA), 0.7)]
    assert len(answers) == 5 and "256" in answers[1]["error"]
    alone = replica.answer(messages[:1], json.dumps(ANSWER_SCHEMA), 0.7)
    assert json.loads(alone[0]).keys() == answers[0].keys()


def test_an_engine_that_dies_takes_its_actor_along(random_model: Path) -> None:
    """The engine in a process of its own, which is killed: the next question ends the actor's process."""
    code = f"""
        import json, os, psutil
        from l2p_data.engines.vllm_engine import VLLMSettings, _Replica
        if __name__ == "__main__":
            options = {{"max_tokens": 8, "max_model_len": 64, "engine_kwargs": {SMALL!r}}}
            settings = VLLMSettings(model={str(random_model)!r}, **options)
            replica = _Replica(str(settings.model), settings, on_gpu=False)
            assert replica.fault() is None, replica.fault()
            print(replica.answer([("Hello.", 1)], json.dumps({ANSWER_SCHEMA!r}), 0.0), flush=True)
            for child in psutil.Process().children(recursive=True):
                child.kill()
            asked = [("Hello.", 1), ("Again.", 2)]
            print(replica.answer(asked, json.dumps({ANSWER_SCHEMA!r}), 0.0), flush=True)
    """
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 1 and ended.stdout.count("\n") == 1, ended.stdout + ended.stderr[-2000:]
