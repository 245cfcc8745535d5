"""Every number of every option and setting has its range, checked before anything runs."""

import math
from pathlib import Path
from typing import Any

import pytest
from l2p_data import (
    CheckSettings,
    DataError,
    FilterRules,
    SynthesisConfig,
    commands,
    prompt_records,
    write_prompts,
)
from l2p_data.cli import main
from l2p_data.engines.openai import OpenAIServer
from l2p_data.engines.vllm_engine import VLLMSettings
from l2p_data.synthesis.buckets import aspect_buckets, parse_size

NAN, INF = math.nan, math.inf
_MODEL = {"model": "m", "output": "o"}
_SERVER = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (FilterRules, {"unsafe_score": NAN}),
        (FilterRules, {"unsafe_score": INF}),
        (FilterRules, {"unsafe_score": -1.0}),
        (FilterRules, {"min_characters": -1}),
        (FilterRules, {"max_opener_share": 1.5}),
        (FilterRules, {"near_duplicate_threshold": 0.0}),
        (FilterRules, {"min_opener_count": 10**30}),
        (CheckSettings, {"unsafe_threshold": NAN}),
        (CheckSettings, {"min_text_match": -0.1}),
        (SynthesisConfig, {**_MODEL, "width": 10**9}),
        (SynthesisConfig, {**_MODEL, "height": 0}),
        (SynthesisConfig, {**_MODEL, "seeds_per_prompt": 0}),
        (SynthesisConfig, {**_MODEL, "seeds_per_prompt": 10**12}),
        (SynthesisConfig, {**_MODEL, "buckets": [(64, 64), (64, 99_999)]}),
        (SynthesisConfig, {**_MODEL, "min_entropy": NAN}),
        (SynthesisConfig, {**_MODEL, "max_attempts": 0}),
        (SynthesisConfig, {**_MODEL, "gpus_per_worker": INF}),
        (SynthesisConfig, {**_MODEL, "gpus_per_worker": 1.5}),
        (SynthesisConfig, {**_MODEL, "worker_resources": {"big": NAN}}),
        (SynthesisConfig, {**_MODEL, "pipeline_kwargs": {"guidance_scale": INF}}),
        (SynthesisConfig, {**_MODEL, "pipeline_kwargs": {"sigmas": [1.0, NAN]}}),
        (SynthesisConfig, {**_MODEL, "pipeline_kwargs": {"num_inference_steps": 10**6}}),
        (SynthesisConfig, {**_MODEL, "pipeline_kwargs": {"max_sequence_length": 0}}),
        (OpenAIServer, {**_SERVER, "timeout": NAN}),
        (OpenAIServer, {**_SERVER, "max_tokens": 0}),
        (OpenAIServer, {**_SERVER, "parallel": 0}),
        (VLLMSettings, {"model": "m", "patience": INF}),
        (VLLMSettings, {"model": "m", "replicas": 0}),
        (VLLMSettings, {"model": "m", "max_tokens": 9000}),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_when_it_is_given(
    kind: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(DataError) as caught:
        kind(**settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "options",
    [
        "prompts --grammar GRAMMAR --count 0",
        "prompts --grammar GRAMMAR --count 3.5",
        "prompts --grammar GRAMMAR --count 99999999999999",
        "prompts --grammar GRAMMAR --count 3 --seed -1",
        "prompts --grammar GRAMMAR --count 3 --seed 99999999999999999999999",
        "prompts --server http://127.0.0.1:1/v1 --model m --count 3 --temperature nan",
        "prompts --server http://127.0.0.1:1/v1 --model m --count 3 --max-tokens -5",
        "prompts --vllm m --count 3 --tensor-parallel 0",
        "expand --server http://127.0.0.1:1/v1 --model m --per-group 0",
        "filter PROMPTS --unsafe-score nan",
        "filter PROMPTS --unsafe-score inf",
        "filter PROMPTS --min-characters 50 --max-characters 10",
        "synthesize PROMPTS --model MODEL --seeds 0",
        "synthesize PROMPTS --model MODEL --width 1000000000",
        "synthesize PROMPTS --model MODEL --guidance inf",
        "synthesize PROMPTS --model MODEL --guidance nan",
        "synthesize PROMPTS --model MODEL --steps 0",
        "synthesize PROMPTS --model MODEL --set guidance_scale=NaN",
        "synthesize PROMPTS --model MODEL --set num_inference_steps=-4",
        "synthesize PROMPTS --model MODEL --bucket 64x0",
        "synthesize PROMPTS --model MODEL --bucket 64x99999999999",
        "synthesize PROMPTS --model MODEL --bucket 64x20000",
        "synthesize PROMPTS --model MODEL --gpus-per-worker nan",
        "synthesize PROMPTS --model MODEL --min-entropy 9",
        "synthesize PROMPTS --model MODEL --min-text-match inf",
        "synthesize PROMPTS --model MODEL --workers -1",
        "synthesize PROMPTS --model MODEL --dtype float7",
    ],
)
def test_a_dry_run_refuses_what_a_run_would_refuse_in_one_line(
    options: str, grammar_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts(prompt_records(["A cat sleeps on a red mat."]), tmp_path / "p.parquet")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    places = {"GRAMMAR": grammar_file, "PROMPTS": tmp_path / "p.parquet", "MODEL": tmp_path / "model"}
    words = [str(places.get(word, word)) for word in options.split()]
    for dry in ([], ["--dry-run"]):
        try:
            code: Any = main([*words, "--out", str(tmp_path / "out.parquet"), *dry])
        except SystemExit as stop:  # the parser's own way to end
            code = stop.code
        assert code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert not (tmp_path / "out.parquet").exists()


def test_what_can_be_meant_is_taken() -> None:
    sizes = [(1216, 832), (16_384, 64)]
    config = SynthesisConfig(model="m", output="o", buckets=sizes, gpus_per_worker=0.5, min_entropy=8)
    assert config.buckets == tuple(sizes)
    assert FilterRules.paper(unsafe_score=0.25).unsafe_score == 0.25
    assert parse_size("0064x64") == (64, 64) and len(aspect_buckets(1024)) == 7
    with pytest.raises(DataError):
        commands.prompts(None, -3, "x", dry_run=True)  # type: ignore[arg-type]
