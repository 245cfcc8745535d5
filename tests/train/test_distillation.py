"""Guidance distillation: the target is the teacher's guided velocity, and the student comes nearer to it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from l2p_arch import L2PPipeline, L2PTransformer, convert
from l2p_train import TrainConfig, plan_for_model, train
from l2p_train.distillation import GuidedTeacher, distillation_loss, load_teacher

SCALE = 4.0


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head carries the text's part of the features, which PyTorch's own start loses."""
    from l2p_mini.architecture import write_untrained_source

    folder = tmp_path_factory.mktemp("teacher")
    source = write_untrained_source(folder / "source", seed=0, dim=64, n_heads=2, n_kv_heads=2, n_layers=3)
    convert(source, folder / "model", head_channels=(8, 8, 8, 8), initialisation="kaiming")
    return folder / "model"


def model_of(folder: Path) -> L2PTransformer:
    return L2PTransformer.from_pretrained(folder / "transformer", local_files_only=True).eval()


def captions(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"caption": torch.randn(5 + index, 128, generator=generator)} for index in range(count)]


def test_the_teacher_is_guided_as_the_pipeline_is(start: Path):
    model, texts, empty = model_of(start), captions(2), captions(1, seed=1)[0]
    x_t, sigma = torch.randn(2, 3, 32, 32), torch.tensor([0.2, 0.9])
    pipeline = L2PPipeline(transformer=model, scheduler=None)
    with torch.no_grad():
        wanted = [
            pipeline._velocity(x_t[i : i + 1], sigma[i], [texts[i]], [empty], SCALE, 0.0) for i in (0, 1)
        ]
    found = GuidedTeacher(model, SCALE, empty).velocity(x_t, sigma, texts)
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_a_student_that_is_guided_itself_has_no_loss(start: Path):
    texts, empty = captions(3), captions(1, seed=1)[0]
    teacher = GuidedTeacher(model_of(start), SCALE, empty)
    x_0, noise, sigma = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32), torch.rand(3)
    losses = {
        student: distillation_loss(student, teacher, x_0, noise, sigma, texts)
        for student in (teacher.velocity, teacher.model)
    }
    assert float(losses[teacher.velocity].max()) < 1e-9
    assert float(losses[teacher.model].min()) > 1e-6


def test_the_teacher_shares_what_its_student_does_not_train(start: Path, tmp_path: Path):
    config = TrainConfig(
        model=start,
        corpus=tmp_path,
        output=tmp_path,
        precision="fp32",
        zero_stage=0,
        distil_guidance=2.0,
    )
    student = model_of(start)
    plan = plan_for_model(student, trainable=1)
    teacher = load_teacher(config, plan, student, captions(1)[0]).model
    own = {name: value.data_ptr() for name, value in student.named_parameters()}
    shared = {name for name, value in teacher.named_parameters() if value.data_ptr() == own[name]}
    assert shared == set(own) - set(plan.trainable)
    assert not any(value.requires_grad for value in teacher.parameters())


def test_a_student_approaches_its_teacher_and_is_exported_for_one_pass(
    start: Path, tiny_corpus: Path, tmp_path: Path
):
    start = shutil.copytree(start, tmp_path / "start")
    (start / "sampling.json").write_text('{"guidance_scale": 4.0, "num_inference_steps": 9}')
    config = TrainConfig(
        model=start,
        corpus=tiny_corpus,
        output=tmp_path / "run",
        steps=30,
        batch_size=4,
        trainable="full",
        learning_rate=1e-3,
        distil_guidance=SCALE,
        stratified_sigma=True,
        sample_every=0,
        log_every=1,
        tensorboard=False,
    )
    losses: list[float] = []
    result = train(
        config, on_event=lambda one: losses.append(one["loss"]) if one["event"] == "step" else None
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    exported = json.loads((Path(result.model) / "sampling.json").read_text())
    assert exported == {"guidance_scale": 1.0, "num_inference_steps": 9}
    assert json.loads((start / "sampling.json").read_text())["guidance_scale"] == 4.0
