"""A student that takes its guidance as a number learns each scale from a teacher that is guided by it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PPipeline, L2PTransformer
from l2p_train import TrainConfig, TrainError, plan_for_model, train
from l2p_train.config import config_from_mapping
from l2p_train.distill import main, plan_stages
from l2p_train.distillation import Teacher, distillation_loss
from l2p_train.noise import draw_guidance
from l2p_train.student import check_trained, prepare_student


def model_of(folder: Path) -> L2PTransformer:
    return L2PTransformer.from_pretrained(folder / "transformer", local_files_only=True).eval()


def texts_at(*scales: float) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"caption": torch.randn(5 + place, 128, generator=generator), "guidance": torch.tensor(scale)}
        for place, scale in enumerate(scales)
    ]


def words(start: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    few = ["batch_size=4", "trainable=full", "sample_every=0", "tensorboard=false", "loader_workers=0"]
    settings = [word for one in few for word in ("--set", one)]
    return [
        *(str(start), "-o", str(output), "--corpus", str(corpus), "--shift", "2.5", "--updates", "3"),
        *settings,
        *more,
    ]


@pytest.mark.parametrize("steps", [0, 2])
def test_the_target_at_each_scale_is_the_teacher_guided_by_it(start: Path, steps: int) -> None:
    model, [empty] = model_of(start), texts_at(1.0)
    empty = {"caption": empty["caption"]}
    x_t, sigma = torch.randn(3, 3, 32, 32), torch.tensor([1.0, 0.5, 1.0])
    scales = (1.0, 2.75, 4.0)
    schedule: dict[str, Any] = {"steps": steps, "substeps": 2}
    found = Teacher(model, None, empty, **schedule).target(x_t, sigma, texts_at(*scales))
    for place, scale in enumerate(scales):
        teacher = Teacher(model, scale, empty, **schedule)
        part = slice(place, place + 1)
        wanted = teacher.target(x_t[part], sigma[part], texts_at(*scales)[part])
        torch.testing.assert_close(found[part], wanted, atol=1e-5, rtol=1e-5)
    assert (found[1] - found[2]).abs().max() > 1e-4


def test_a_perfect_student_of_every_scale_has_no_loss(start: Path) -> None:
    texts, empty = texts_at(1.0, 2.0, 4.0), {"caption": texts_at(1.0)[0]["caption"]}
    teacher = Teacher(model_of(start), None, empty)
    x_0, noise, sigma = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32), torch.rand(3)
    assert float(distillation_loss(teacher.velocity, teacher, x_0, noise, sigma, texts).max()) < 1e-9
    deaf = distillation_loss(teacher.model, teacher, x_0, noise, sigma, texts)
    assert deaf[0] < 1e-9 and deaf[1:].min() > 1e-6


def test_a_teacher_that_takes_the_number_makes_one_pass(start: Path) -> None:
    model = model_of(start)
    model.take_guidance(1, 4)
    calls: list[list[float]] = []
    model.register_forward_pre_hook(
        lambda _, given: calls.append([float(sample["guidance"]) for sample in given[2]])
    )
    teacher = Teacher(model, 0.0, {}, steps=2, substeps=2)
    teacher.target(torch.randn(2, 3, 32, 32), torch.tensor([1.0, 0.5]), texts_at(1.5, 3.0))
    assert calls == [[1.5, 3.0]] * 2


def test_scales_are_drawn_evenly_and_by_the_sample_alone() -> None:
    drawn = torch.tensor([draw_guidance(7, counter, (1.0, 4.0)) for counter in range(4000)])
    assert drawn[5] == draw_guidance(7, 5, (1.0, 4.0)) != draw_guidance(8, 5, (1.0, 4.0))
    assert drawn.min() >= 1 and drawn.max() <= 4
    counts = torch.histc(drawn, bins=6, min=1, max=4)
    assert (counts / 4000 - 1 / 6).abs().max() < 0.02


def test_one_command_makes_students_that_take_the_number(
    start: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "few"
    options = ("--steps", "4", "2", "--teacher-steps", "8", "--guidance-range", "1", "5", "--json")
    assert main(words(start, tiny_corpus, out, *options)) == 0
    results = json.loads(capsys.readouterr().out)
    for result, steps in zip(results, (4, 2), strict=True):
        config = json.loads((Path(result["model"]) / "transformer" / "config.json").read_text())
        sampling = json.loads((Path(result["model"]) / "sampling.json").read_text())
        assert config["guidance_range"] == [1.0, 5.0] and result["passes"] == steps
        assert sampling == {"guidance_scale": 2.0, "num_inference_steps": steps, "noise_shift": 2.5}
    trained = [json.loads((out / name / "train.json").read_text()) for name in ("steps-4", "steps-2")]
    assert [one["distil_guidance_range"] for one in trained] == [[1.0, 5.0], []]
    assert [one["distil_guidance"] for one in trained] == [0.0, 0.0]

    first, second = (model_of(Path(result["model"])) for result in results)
    assert first.guidance_embedder is not None and second.guidance_embedder is not None
    assert first.guidance_embedder.out.weight.abs().max() > 0  # it has trained
    assert not torch.equal(first.guidance_embedder.out.weight, second.guidance_embedder.out.weight)
    pipeline = L2PPipeline.from_pretrained(results[1]["model"], local_files_only=True)
    size: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
    images = [pipeline("a ring", guidance_scale=s, seeds=[0], **size).images for s in (1.0, 5.0)]
    assert not torch.equal(*images)
    assert "guidance_embedder" not in (start / "transformer" / "config.json").read_text()


def test_a_sharded_teacher_gets_the_new_tensors_into_its_index(
    start: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    import shutil

    sharded = shutil.copytree(start, tmp_path / "sharded")
    for path in (sharded / "transformer").glob("*.safetensors"):
        path.unlink()
    model_of(start).save_pretrained(sharded / "transformer", max_shard_size="200KB")
    name = "diffusion_pytorch_model.safetensors.index.json"
    before = json.loads((sharded / "transformer" / name).read_text())
    command = words(sharded, tiny_corpus, tmp_path / "few", "--guidance-range", "1", "3")
    assert main(command) == 0
    student = tmp_path / "few" / "guidance" / "model"
    after = json.loads((student / "transformer" / name).read_text())
    added = set(after["weight_map"]) - set(before["weight_map"])
    assert added == {
        f"guidance_embedder.{one}.{kind}" for one in ("hidden", "out") for kind in ("weight", "bias")
    }
    loaded = model_of(student)
    size = sum(value.nbytes for value in loaded.state_dict().values())
    assert after["metadata"]["total_size"] == size
    assert loaded.guidance_embedder is not None
    assert loaded.guidance_embedder.out.weight.abs().max() > 0
    assert json.loads((sharded / "transformer" / name).read_text()) == before


def settings(start: Path, corpus: Path, output: Path, **more: Any) -> TrainConfig:
    return config_from_mapping(
        {
            **{"model": str(start), "corpus": str(corpus), "output": str(output), "batch_size": 4},
            **{"trainable": "full", "learning_rate": 1e-3, "stratified_sigma": True, "sample_every": 0},
            **{"log_every": 1, "tensorboard": False, "loader_workers": 0, "precision": "fp32"},
            **more,
        }
    )


def test_a_run_that_was_stopped_goes_on_bit_for_bit_and_holds_out_with_its_scales(
    start: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    options = {"distil_guidance_range": [1.0, 4.0], "validation_images": 2, "checkpoint_every": 3}
    losses: list[float] = []

    def note(event: dict[str, Any]) -> None:
        losses.extend([event["loss"]] if event["event"] == "validation" else [])

    whole = train(settings(start, tiny_corpus, tmp_path / "a", steps=6, **options), on_event=note)
    train(settings(start, tiny_corpus, tmp_path / "b", steps=3, **options))
    halves = train(settings(start, tiny_corpus, tmp_path / "b", steps=6, **options))
    weights = [
        load_file(next((Path(one.model) / "transformer").glob("*.safetensors"))) for one in (whole, halves)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert len(losses) == 2 and losses[1] < losses[0]


def test_a_student_learns_which_way_the_number_leads(tiny_corpus: Path, tmp_path: Path) -> None:
    from l2p_mini.paths import PIXEL_MODEL

    options = {"steps": 60, "seed": 1, "trainable": "head-only", "distil_guidance_range": [1.0, 8.0]}
    result = train(settings(PIXEL_MODEL, tiny_corpus, tmp_path / "run", **options))
    student, pipeline = model_of(Path(result.model)), L2PPipeline.from_pretrained(PIXEL_MODEL)
    texts, empty = pipeline.encode(["a red circle", "a blue square"] * 4), pipeline.encode("")[0]
    teacher = Teacher(pipeline.transformer.eval(), None, empty)
    generator = torch.Generator().manual_seed(3)
    x_t, sigma = torch.randn(8, 3, 32, 32, generator=generator), torch.linspace(0.7, 1.0, 8)
    answers, wanted = [], []
    for scale in (1.0, 8.0):
        told = [{**text, "guidance": torch.tensor(scale)} for text in texts]
        wanted.append(teacher.velocity(x_t, sigma, told))
        with torch.no_grad():
            answers.append(student(x_t, sigma, told))
    moved, way = answers[1] - answers[0], wanted[1] - wanted[0]
    assert float((moved * way).sum() / (moved.norm() * way.norm())) > 0.4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"distil_guidance": 2.0}, "one guidance, and distil_guidance_range"),
        ({"trainable": "lora-only"}, 'trainable = "lora-only" trains adapters alone'),
        ({"zero_stage": 3}, "distil_guidance_range needs a whole teacher in every process"),
        ({"distil_guidance_range": [4.0, 1.0]}, "distil_guidance_range is"),
        ({"distil_guidance_range": [0.0, 4.0]}, "it must be two numbers"),
        ({"distil_guidance_range": [1.0, 2.0, 3.0]}, "it must be two numbers"),
        ({"distil_guidance_range": [1.0, float("inf")]}, "distil_guidance_range"),
        ({"frequency_weight": 0.1}, "perceptual_weight and frequency_weight"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    start: Path, tiny_corpus: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        settings(start, tiny_corpus, tmp_path, **({"distil_guidance_range": [1.0, 4.0]} | more))


def test_an_input_that_would_not_train_is_refused(start: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    config = settings(start, tiny_corpus, tmp_path, distil_guidance_range=[1.0, 4.0])
    student = model_of(start)
    prepare_student(student, config)
    check_trained(config, plan_for_model(student, trainable="head-only"), student)
    frozen = plan_for_model(student, trainable="full", freeze_patterns=("guidance_embedder.*",))
    with pytest.raises(TrainError, match=r'let "guidance_embedder.\*" train'):
        check_trained(config, frozen, student)


def test_what_a_model_with_a_number_cannot_learn_is_refused(
    start: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    model = model_of(start)
    model.take_guidance(1, 4)
    for options in ({"distil_guidance": 2.0}, {"distil_guidance_range": [1.0, 2.0]}):
        with pytest.raises(TrainError, match="takes it as a number already, from 1 to 4"):
            prepare_student(model, settings(start, tiny_corpus, tmp_path, **options))
    painted = settings(start, tiny_corpus, tmp_path, sample_guidance=7.0, sample_every=1)
    with pytest.raises(TrainError, match="sample_guidance is 7, and the model takes a guidance from 1 to 4"):
        prepare_student(model, painted)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guidance-range", "4", "1"], "--guidance-range is [4.0, 1.0]; it must be two numbers"),
        (["--guidance-range", "1", "nan"], "--guidance-range"),
        (["--guidance-range", "0.5", "3"], "--guidance-range"),
        (["--guidance-range", "1", "3", "--guidance", "2"], "is one guidance and --guidance-range many"),
        (["--steps", "5", "--set", "distil_guidance_range=[1, 2]"], "no option here stands for"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    start: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    try:
        code = main(words(start, tiny_corpus, tmp_path / "few", *more))
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in error[-1]


def test_a_student_is_not_taught_guidance_again(
    start: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    student = shutil.copytree(start, tmp_path / "student")
    model = model_of(start)
    model.take_guidance(1, 4)
    model.save_pretrained(student / "transformer")
    for more in (["--guidance", "3", "--steps", "5"], ["--guidance-range", "1", "2"], []):
        assert main(words(student, tiny_corpus, tmp_path / "few", *more)) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "takes its guidance as a number already, from 1 to 4" in line and "give --steps alone" in line


def test_the_range_is_learned_first_and_kept() -> None:
    stages = plan_stages([8, 4], 16, 4.0, [1.0, 4.0])
    assert [(one.steps, one.substeps, one.guidance, one.scales) for one in stages] == [
        (8, 2, 0.0, (1.0, 4.0)),
        (4, 2, 0.0, ()),
    ]
    [alone] = plan_stages([], 16, 4.0, [1.0, 4.0])
    assert (alone.name, alone.guidance, alone.scales) == ("guidance", 0.0, (1.0, 4.0))
