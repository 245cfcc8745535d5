"""The whole run at tiny size: exactness at every ZeRO stage, resuming, stopping, and what is left on disk."""

import errno
import gc
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from l2p_train import Interrupted, NonFiniteLossError, TrainConfig, TrainError, launch, train
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

STEPS = 4


@pytest.fixture
def settings(tiny_model: Path, tiny_corpus: Path, tmp_path: Path):
    """Return the function changes -> TrainConfig of a tiny run."""

    def make(**changes) -> TrainConfig:
        values = {
            "model": tiny_model,
            "corpus": tiny_corpus,
            "output": tmp_path / "run",
            "steps": STEPS,
            "batch_size": 4,
            "trainable": 1,
            "learning_rate": 1e-3,
            "log_every": 1,
            "checkpoint_every": 2,
            "sample_every": 0,
            "tensorboard": False,
        }
        return TrainConfig(**(values | changes))

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a transformer directory."""
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def run(config: TrainConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; return the losses of this session and the final weights."""
    losses: list[float] = []
    result = train(
        config, on_event=lambda event: losses.append(event["loss"]) if event["event"] == "step" else None
    )
    return losses, weights(Path(result.model) / "transformer")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def plain_loop(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """Losses and weights of the same maths in bare PyTorch, float32: what every ZeRO stage must reproduce."""
    from l2p_arch import L2PTransformer
    from l2p_train.data.batches import BatchMaker
    from l2p_train.data.conditioning import ConditioningCache, encode_missing
    from l2p_train.data.corpus import Corpus
    from l2p_train.freeze import plan_for_model
    from l2p_train.objective import l2p_loss

    folder = tmp_path_factory.mktemp("plain")
    config = TrainConfig(model=tiny_model, corpus=tiny_corpus, output=folder, batch_size=4)
    corpus = Corpus(tiny_corpus)
    prompts = sorted({"", *(row.prompt for row in corpus.rows)})
    list(encode_missing(tiny_model, prompts, folder, max_sequence_length=512))
    maker = BatchMaker(config, corpus, ConditioningCache(folder), patch_size=16)
    model = L2PTransformer.from_pretrained(tiny_model / "transformer", local_files_only=True).train()
    trainable = set(plan_for_model(model, trainable=1).trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=1e-3, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        (batch,) = maker.batches(step)
        loss = l2p_loss(model, batch.x_0, batch.noise, batch.sigma, batch.conditioning).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, trainable


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (0, {}),
        (1, {}),
        (2, {}),
        (3, {}),
        (1, {"offload_optimizer": True}),
        (3, {"offload_optimizer": True, "micro_batch_size": 1}),
        (0, {"head_tile": 16, "gradient_checkpointing": True}),
    ],
)
def test_every_zero_stage_is_the_bare_loop_with_frozen_tensors_untouched(
    stage, changes, settings, plain_loop, tiny_model
):
    losses, wanted, trainable = plain_loop
    found_losses, found = run(settings(zero_stage=stage, precision="fp32", **changes))
    assert found_losses == pytest.approx(losses, rel=1e-5)
    initial = weights(tiny_model / "transformer")
    for name, tensor in found.items():
        assert torch.equal(tensor, initial[name]) == (name not in trainable), name
        torch.testing.assert_close(tensor, wanted[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "ema_decay": 0.9, "schedule": "one-cycle", "micro_batch_size": 2},
        {"zero_stage": 2, "caption_dropout": 0.5, "gradient_checkpointing": True, "new_end_multiplier": 3.0},
        {"zero_stage": 3, "ema_decay": 0.9},
        {"zero_stage": 0, "optimizer": "muon", "precision": "bf16"},
        {"zero_stage": 2, "distil_guidance": 3.0},
        {"zero_stage": 0, "distil_guidance": 2.0, "distil_steps": 4, "ema_decay": 0.9},
    ],
)
def test_a_run_resumed_from_a_checkpoint_is_bit_identical(changes, settings, tmp_path):
    config = settings(**changes)
    losses, final = run(config)
    half = tmp_path / "half"
    shutil.copytree(config.output, half)
    shutil.rmtree(half / "checkpoints" / f"step-{STEPS:06d}")
    (half / "result.json").unlink()
    resumed_losses, resumed = run(settings(output=half, **changes))
    assert resumed_losses == losses[2:]
    assert equal(resumed, final)
    logged = [json.loads(line) for line in (half / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in logged if record["event"] == "step"] == losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_the_process_computes_after_a_training_is_what_it_computed_before(stage, settings, monkeypatch):
    """A notebook, and l2p-transfer, evaluate in the process that trained: the pictures are anybody's."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(512, 64), torch.randn(3, 17, 512)
    function, before, frozen = torch.nn.functional.linear, layer(x), gc.get_freeze_count() > 0
    another_order = x @ layer.weight.T + layer.bias
    assert not torch.equal(before, another_order), "DeepSpeed's order of the sums would not show"
    monkeypatch.setenv("CXX", "no-compiler")  # "auto" asks for one, and then goes on without
    train(settings(steps=1, zero_stage=stage, compile="auto"))
    assert torch.nn.functional.linear is function
    assert torch.equal(layer(x), before)
    assert not torch._dynamo.config.suppress_errors and (gc.get_freeze_count() > 0) == frozen


def test_in_bf16_what_trains_has_float32_masters_and_frozen_weights_have_no_copy(settings, tmp_path):
    run(settings(precision="bf16", learning_rate=1e-6))  # steps far below the resolution of bf16
    saved = load_file(next((tmp_path / "run" / "checkpoints").glob("step-000004/*.safetensors")))
    table = json.loads((tmp_path / "run" / "freeze_table.json").read_text())
    assert {name.split("/", 1)[1] for name in saved} == set(table["trainable"])
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    masters = saved["master/detailer_head.out_conv.weight"]
    assert not torch.equal(masters, masters.bfloat16().float())
    elements = sum(tensor.numel() for tensor in saved.values())
    assert elements == 3 * table["trainable_parameters"]


def test_the_final_directory_is_a_pipeline_and_samples_show_source_beside_ours(
    settings, tiny_model, tmp_path
):
    from l2p_arch import L2PPipeline
    from PIL import Image

    events = []
    config = settings(
        sample_every=2, sample_count=3, sample_steps=2, ema_decay=0.5, steps=2, tensorboard=True
    )
    result = train(config, on_event=lambda event: events.append(event))
    grid = Image.open(tmp_path / "run" / "samples" / "step-000002.png")
    assert grid.size == (3 * 34 - 2, 2 * 34 - 2)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    pipeline = L2PPipeline.from_pretrained(result.model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a red circle", height=32, width=32, num_inference_steps=1, seeds=[0], output_type="pt"
    ).images
    assert image.shape == (1, 3, 32, 32)
    kinds = [event["event"] for event in events]
    assert kinds == ["embed", "start", "step", "step", "sample", "end"]
    step = events[3]
    assert step["images_per_second"] > 0 and step["memory_mb"] > 0 and step["eta_seconds"] == 0
    again = train(config)
    assert again == result  # all is done: nothing runs
    names = {path.name for path in Path(result.model).iterdir()} | {"surgery_report.json"}
    assert names == {path.name for path in tiny_model.iterdir()} | {"training.json", "surgery_report.json"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_whoever_the_umask_allows_can_read_what_a_run_leaves(umask, mode, settings):
    before = os.umask(umask)
    try:
        config = settings(steps=1)
        train(config)
    finally:
        os.umask(before)
    written = {path.parent.name: path for path in config.output.rglob("*.safetensors")}
    assert {"step-000001", "transformer"} < written.keys() and len(written) >= 3  # and the embeddings
    for name, path in written.items():
        if name != "text_encoder":  # a link to the source's
            assert path.stat().st_mode & 0o777 == mode, path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_writes_a_checkpoint_and_the_next_run_goes_on(number, code, settings):
    config = settings(checkpoint_every=0, steps=3)

    def interrupt(event):
        if event["event"] == "step" and event["step"] == 1:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as stopped:
        train(config, on_event=interrupt)
    assert stopped.value.exit_code == code
    step = stopped.value.step
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    losses, _ = run(config)
    assert len(losses) == 3 - step


def test_only_the_newest_checkpoints_stay(settings):
    config = settings(checkpoint_every=1, keep_checkpoints=2, steps=4)
    run(config)
    assert sorted(path.name for path in (config.output / "checkpoints").iterdir()) == [
        "step-000003",
        "step-000004",
    ]


def test_a_non_finite_loss_stops_with_its_batch_saved(settings, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    path = next((broken / "transformer").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["detailer_head.out_conv.bias"][0] = float("nan")
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteLossError, match="loss of step 1 is nan; the batch is in"):
        train(settings(model=broken))
    saved = load_file(next((tmp_path / "run" / "non-finite").iterdir()))
    assert saved["0/x_0"].shape == (4, 3, 32, 32)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(settings, tmp_path, monkeypatch, error):
    def save(tensors, path, metadata=None):
        if "000004" in str(path):
            raise error
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", save)
        with pytest.raises(TrainError, match=r"a disk is full .* it goes on from the newest checkpoint"):
            train(settings())
    _, interrupted = run(settings())
    _, whole = run(settings(output=tmp_path / "whole"))
    assert equal(interrupted, whole)


def test_another_run_in_the_same_directory_is_refused_with_the_difference(settings, tmp_path):
    run(settings(steps=2))
    with pytest.raises(TrainError, match=r"learning_rate: 0.001 -> 0.002"):
        train(settings(steps=4, learning_rate=2e-3))
    damaged = next((tmp_path / "run" / "checkpoints").glob("step-*/rank-000.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(TrainError, match=r"rank-000.safetensors is missing or damaged"):
        train(settings(steps=4))


def test_bad_input_is_one_line(settings, tmp_path):
    with pytest.raises(TrainError, match=r"no corpus in"):
        train(settings(corpus=tmp_path))
    with pytest.raises(TrainError, match=r"no weights in|no transformer/config.json"):
        train(settings(model=tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot write to"):
        train(settings(output=tmp_path / "file" / "run"))


def test_a_run_never_replaces_what_it_starts_from(settings, tiny_model, tmp_path):
    own = tmp_path / "style"
    shutil.copytree(tiny_model, own / "model")
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model").symlink_to(own / "model")
    for model, output in (
        (own / "model", own),
        (own / "model", tmp_path / "linked"),
        (own / "model", own / "model"),
        (own / "model", own / "model" / "run"),
    ):
        for start in (train, lambda config: launch(config, 1)):
            with pytest.raises(TrainError, match="use another output"):
                start(settings(model=model, output=output))
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_a_finished_run_of_another_model_is_not_taken_and_its_notes_stay(settings, tmp_path):
    first = train(settings(steps=1))
    note = Path(first.model) / "training.json"
    (Path(first.model) / "lora").mkdir()
    (Path(first.model) / "lora" / "old.txt").write_text("of the first run")
    before = note.read_bytes()
    again = settings(model=Path(first.model), output=tmp_path / "second", steps=1)
    second = train(again)
    assert note.read_bytes() == before != (Path(second.model) / "training.json").read_bytes()
    assert not (Path(second.model) / "lora").exists()
    assert train(again) == second
    with pytest.raises(TrainError, match="was trained from another model"):
        train(settings(output=tmp_path / "second", steps=1))


def test_a_run_does_not_go_on_with_other_images(settings, tmp_path, write_shard):
    run(settings(steps=1, checkpoint_every=1))
    other = tmp_path / "other"
    other.mkdir()
    write_shard(other / "part-00000.parquet", [(32, 32)] * 6, seed=9)
    with pytest.raises(TrainError, match="was trained on other images than"):
        train(settings(steps=2, corpus=other))
