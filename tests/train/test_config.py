"""Settings: Table 3's defaults, strict loading, and what may change when a run resumes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from l2p_train import TrainConfig, TrainError, config_from_mapping, load_config
from l2p_train.config import differences
from l2p_train.schedule import ema_decay, learning_rate_factor

PATHS = {"model": "m", "corpus": "c", "output": "o"}


def config(**changes) -> TrainConfig:
    return config_from_mapping(PATHS | changes)


def test_defaults_are_table_3():
    settings = config()
    assert (settings.learning_rate, settings.weight_decay, settings.batch_size) == (5e-5, 0.01, 8)
    assert settings.batch_layout(8) == (1, 1)  # no gradient accumulation
    assert (settings.trainable, settings.noise_shift, settings.loss_weighting) == ("shallow", 3.0, "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rte": 1.0}, "unknown key 'learning_rte'; did you mean 'learning_rate'"),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"schedule": "linear"}, "schedule is 'linear'; it must be one of 'constant', 'cosine', 'one-cycle'"),
        ({"betas": [0.9]}, "betas"),
        ({"zero_stage": 4}, "zero_stage is 4; use 0, 1, 2 or 3"),
        ({"caption_dropout": 1.0}, "caption_dropout is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"distil_guidance": 0.5}, "distil_guidance is 0.5; it must be above 1"),
        ({"distil_guidance": float("inf")}, "distil_guidance is inf"),
        ({"distil_guidance": 2.0, "zero_stage": 3}, "use zero_stage 0, 1 or 2"),
        ({"distil_steps": 8, "zero_stage": 3}, "distil_steps needs a whole teacher"),
        ({"distil_steps": -1}, "distil_steps is -1"),
        ({"distil_steps": 4, "polish_share": 0.2}, "set polish_share to 0"),
    ],
)
def test_a_bad_setting_is_named(change, message):
    with pytest.raises(TrainError, match=message):
        config(**change)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -3),
        ("seed", 2**64),
        ("steps", 10**22),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("new_end_multiplier", -0.5),
        ("betas", [0.9, float("nan")]),
        ("betas", [-0.1, 0.9]),
        ("eps", 0.0),
        ("weight_decay", float("-inf")),
        ("gradient_clipping", float("nan")),
        ("gradient_clipping", -0.1),
        ("warmup_steps", -1),
        ("final_rate", float("nan")),
        ("noise_shift", float("nan")),
        ("logit_mean", float("inf")),
        ("logit_std", float("nan")),
        ("head_tile", -64),
        ("max_sequence_length", 0),
        ("resolution", 0),
        ("trainable", -1),
        ("loader_workers", -1),
        ("image_cache_mb", -1),
        ("corpus_cache_gb", float("nan")),
        ("checkpoint_every", -1),
        ("keep_checkpoints", -2),
        ("validate_every", -1),
        ("sample_every", -1),
        ("sample_count", -1),
        ("sample_steps", 0),
        ("sample_guidance", float("inf")),
        ("sample_seed", -1),
        ("peak_tflops", 0.0),
    ],
)
def test_a_number_that_no_run_can_have_is_refused_in_a_file_and_in_python(key, value):
    for make in (lambda: config(**{key: value}), lambda: dataclasses.replace(config(), **{key: value})):
        with pytest.raises(TrainError, match=rf"^(train\.)?{key}(\[\d\])? is .*; it must be"):
            make()


@pytest.mark.parametrize("content", ["[" * 50_000, "5", '{"train": 5}', "train = 5", "model = {", "\0"])
@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_file_that_holds_no_settings_is_one_line(tmp_path: Path, content, suffix):
    path = tmp_path / f"c.{suffix}"
    path.write_text(content)
    with pytest.raises(TrainError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(TrainError, match="corpus is missing; it has no default"):
        config_from_mapping({"model": "m", "output": "o"})


def test_json_and_toml_load_to_the_same_settings(tmp_path: Path):
    settings = config(trainable=2, betas=[0.9, 0.95], sample_prompts=["a", "b"], micro_batch_size=4)
    (tmp_path / "c.json").write_text(json.dumps(settings.to_dict()))
    lines = [f"{k} = {json.dumps(v)}" for k, v in settings.to_dict().items() if v is not None]
    (tmp_path / "c.toml").write_text("[train]\n" + "\n".join(lines))
    assert load_config(tmp_path / "c.json") == load_config(tmp_path / "c.toml") == settings


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(TrainError, match="batch_size 8 does not divide over 3 processes"):
        config().batch_layout(3)
    with pytest.raises(TrainError, match="micro_batch_size 3"):
        config(micro_batch_size=3).batch_layout(1)
    assert config(batch_size=24, micro_batch_size=3).batch_layout(2) == (3, 4)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "remedy"),
    [
        (8, None, 6, "use 1, 2, 4 or 8 processes, or a batch_size of 6 or 12"),
        (2, None, 3, "use 1 or 2 processes, or a batch_size of 3"),
        (8, 2, 3, "use 1, 2 or 4 processes, or a batch_size of 6 or 12"),
        (8, 8, 3, "use 1 process, or a batch_size of 24"),
        (8, 3, 6, "use a batch_size of 18"),
        (8, 4, 4, "use 1 or 2"),
    ],
)
def test_every_remedy_for_a_batch_that_does_not_divide_works(batch, micro, processes, remedy):
    settings = config(batch_size=batch, micro_batch_size=micro)
    with pytest.raises(TrainError) as refused:
        settings.batch_layout(processes)
    assert str(refused.value).endswith(remedy)
    counts, _, sizes = remedy.partition("a batch_size of ")
    for size in map(int, re.findall(r"\d+", sizes)):
        config(batch_size=size, micro_batch_size=micro).batch_layout(processes)
    for number in map(int, re.findall(r"\d+", counts)):
        if sizes:
            settings.batch_layout(number)
        else:
            config(batch_size=batch, micro_batch_size=number).batch_layout(processes)


def test_a_resumed_run_may_change_its_reports_and_length_only():
    old = config().to_dict()
    assert differences(old, config(steps=5000, log_every=1, output="elsewhere")) == []
    assert differences(old, config(seed=1, trainable=2)) == ["seed: 0 -> 1", "trainable: shallow -> 2"]


def test_every_setting_survives_json():
    settings = config()
    assert config_from_mapping(json.loads(json.dumps(settings.to_dict()))) == settings
    assert len(dataclasses.fields(settings)) == len(settings.to_dict())


def test_learning_rate_schedules_have_their_shapes():
    constant = config(warmup_steps=4)
    assert [learning_rate_factor(step, constant) for step in (0, 1, 3, 4, 999)] == [0.25, 0.5, 1, 1, 1]
    cosine = config(schedule="cosine", steps=100, final_rate=0.1)
    assert learning_rate_factor(49, cosine) == pytest.approx(0.55)
    assert learning_rate_factor(99, cosine) == pytest.approx(0.1)
    cycle = [learning_rate_factor(step, config(schedule="one-cycle", steps=100)) for step in range(100)]
    assert max(cycle) == cycle[29] == 1.0 and cycle[0] < 0.05 and cycle[99] < 1e-9
    assert cycle[:30] == sorted(cycle[:30]) and cycle[29:] == sorted(cycle[29:], reverse=True)


def test_the_average_forgets_its_start_sooner_when_warmed_up():
    assert ema_decay(0, config(ema_decay=0.999)) == pytest.approx(0.1)
    assert ema_decay(10**6, config(ema_decay=0.999)) == 0.999
    assert ema_decay(0, config(ema_decay=0.999, ema_warmup=False)) == 0.999


def test_what_an_earlier_version_did_not_know_has_its_default(tmp_path: Path):
    config = TrainConfig(model=tmp_path, corpus=tmp_path, output=tmp_path)
    old = {key: value for key, value in config.to_dict().items() if key not in ("polish_share", "ema_decay")}
    assert differences(old, config) == []
    changed = dataclasses.replace(config, polish_share=0.3)
    assert differences(old, changed) == [f"polish_share: {config.polish_share} -> 0.3"]
