"""Distillation: the target is the teacher's own way, guided, and the student comes nearer to it."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from l2p_arch import L2PPipeline, L2PTransformer
from l2p_train import TrainConfig, TrainError, plan_for_model, train
from l2p_train.distill import main, plan_stages, stage_config
from l2p_train.distillation import GuidedTeacher, Teacher, distillation_loss, load_teacher, step_weight

SCALE = 4.0


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


@pytest.mark.parametrize("recipe", ["paper", "aligned"])
@pytest.mark.parametrize("substeps", [1, 3])
def test_a_perfect_student_paints_in_fewer_steps_what_its_teacher_paints(
    recipe: str, substeps: int, start: Path
) -> None:
    from l2p_mini.paths import PIXEL_MODEL

    folder = PIXEL_MODEL if recipe == "aligned" else start
    pipeline = L2PPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    model, steps, shift = pipeline.transformer.eval(), 4, 2.5
    texts, empty = pipeline.encode(["a red ring", "a blue cross"]), pipeline.encode("")[0]
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = pipeline(
        prompt_conditioning=texts,
        num_inference_steps=steps * substeps,
        guidance_scale=SCALE,
        noise_shift=shift,
        latents=noise,
        height=64,
        width=64,
        output_type="latent",
    ).images
    shifted = shift * model.noise_scale
    schedule = {"steps": steps, "substeps": substeps, "shift": shifted, "polish": model.polish}
    teacher = Teacher(model, SCALE, empty, **schedule)
    x_t, even = noise, torch.arange(steps, -1, -1) / steps
    levels = shifted * even / (1 + (shifted - 1) * even)
    for now, then in itertools.pairwise(levels):
        x_t = x_t + (then - now) * teacher.target(x_t, now.expand(2), texts)
    torch.testing.assert_close(x_t, wanted, atol=2e-3, rtol=1e-3)
    assert bool(model.polish) == (recipe == "aligned")


@pytest.mark.parametrize(("steps", "shift"), [(4, 1.0), (8, 5.46), (5, 0.5)])
def test_the_weight_of_a_step_is_its_length(steps: int, shift: float) -> None:
    even = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    levels = (shift * even / (1 + (shift - 1) * even)).float()
    weights = step_weight(steps, shift)(levels[:-1])
    torch.testing.assert_close(weights, steps * (levels[:-1] - levels[1:]), atol=1e-5, rtol=1e-4)
    assert float(weights.mean()) == pytest.approx(1)


def test_steps_are_weighed_by_their_length_only_where_there_are_steps() -> None:
    places = {"model": Path("m"), "corpus": "c", "output": Path("o"), "loss_weighting": "step"}
    assert TrainConfig(**places, distil_steps=4).distils == "distil_steps"
    with pytest.raises(TrainError, match="weighs the steps that distil_steps learns, and there are none"):
        TrainConfig(**places)


def test_steps_weigh_by_length_unless_a_run_began_otherwise_or_it_is_set(start: Path, tmp_path: Path) -> None:
    stages = [*plan_stages([4], 8, 3.0), *plan_stages([], 8, 3.0)]
    shared = {"corpus": "c", "noise_shift": 2.0}
    found = [stage_config(stage, start, tmp_path / "new", shared) for stage in stages]
    assert [one.loss_weighting for one in found] == ["step", "none"]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "train.json").write_text('{"loss_weighting": "none", "steps": 9}')
    assert stage_config(stages[0], start, tmp_path / "begun", shared).loss_weighting == "none"
    given = shared | {"loss_weighting": "cosmap"}
    assert stage_config(stages[0], start, tmp_path / "new", given).loss_weighting == "cosmap"


def test_without_guidance_the_teacher_needs_one_pass(start: Path) -> None:
    calls: list[int] = []
    model = model_of(start)
    model.register_forward_hook(lambda _module, given, _answer: calls.append(len(given[0])))
    teacher = Teacher(model, 0.0, captions(1)[0], steps=2, substeps=2)
    teacher.target(torch.randn(3, 3, 32, 32), torch.tensor([1.0, 0.5, 1.0]), captions(3))
    assert calls == [3, 3]


@pytest.mark.parametrize(
    ("steps", "teacher_steps", "guidance", "wanted"),
    [
        ([], 30, 2.0, [("guidance", 0, 1, 2.0)]),
        ([8], 16, 2.5, [("steps-8", 8, 2, 2.5)]),
        ([8, 4], 8, 3.0, [("steps-8", 8, 1, 3.0), ("steps-4", 4, 2, 0.0)]),
        ([5], 30, 1.0, [("steps-5", 5, 6, 0.0)]),
        ([12, 3, 1], 24, 7.5, [("steps-12", 12, 2, 7.5), ("steps-3", 3, 4, 0.0), ("steps-1", 1, 3, 0.0)]),
    ],
)
def test_only_the_first_student_learns_guidance(
    steps: list[int], teacher_steps: int, guidance: float, wanted: list[tuple[str, int, int, float]]
) -> None:
    planned = plan_stages(steps, teacher_steps, guidance)
    assert [(one.name, one.steps, one.substeps, one.guidance) for one in planned] == wanted


@pytest.mark.parametrize(
    ("steps", "teacher_steps", "guidance", "message"),
    [
        ([], 30, 1.0, "the guidance is 1, which is off"),
        ([7], 16, 2.0, "--steps 7 is no part of the 16 steps before it; use one of 1, 2, 4, 8, 16"),
        ([16], 16, 1.0, "--steps 16 is no part of the 16 steps before it; use one of 1, 2, 4, 8, or"),
        ([32], 16, 2.0, "--steps 32 is no part of the 16"),
        ([4, 8], 16, 2.0, "--steps 8 is no part of the 4 steps before it; use one of 1, 2, or"),
        ([4, 4], 16, 2.0, "--steps 4 is no part of the 4"),
    ],
)
def test_steps_that_do_not_divide_are_refused(
    steps: list[int], teacher_steps: int, guidance: float, message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        plan_stages(steps, teacher_steps, guidance)


def distil_arguments(start: Path, corpus: Path, output: Path) -> list[str]:
    few = ["batch_size=4", "trainable=full", "sample_every=0", "tensorboard=false", "loader_workers=0"]
    settings = [word for one in few for word in ("--set", one)]
    return [
        *(str(start), "-o", str(output), "--corpus", str(corpus), "--steps", "4", "2"),
        *("--teacher-steps", "8", "--guidance", "3", "--shift", "2.5", "--updates", "3", *settings),
    ]


def test_one_command_makes_students_of_fewer_steps_and_goes_on(
    start: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = distil_arguments(start, tiny_corpus, tmp_path / "few")
    assert main([*words, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["steps"], first["passes"], second["steps"], second["passes"]) == (4, 4, 2, 2)
    sampling = json.loads((Path(second["model"]) / "sampling.json").read_text())
    assert sampling == {"guidance_scale": 1.0, "num_inference_steps": 2, "noise_shift": 2.5}
    configs = [
        json.loads((tmp_path / "few" / name / "train.json").read_text()) for name in ("steps-4", "steps-2")
    ]
    assert [one["distil_guidance"] for one in configs] == [3.0, 0.0]
    assert configs[1]["model"] == first["model"]

    shutil.rmtree(tmp_path / "few" / "steps-2")  # as if it had been stopped between the two
    weights = Path(second["model"]) / "transformer" / "diffusion_pytorch_model.safetensors"
    assert main(words) == 0
    assert "loss" in capsys.readouterr().out and weights.is_file()
    images = L2PPipeline.from_pretrained(second["model"], local_files_only=True)(
        "a ring", height=32, width=32, output_type="np", num_inference_steps=2, guidance_scale=1.0
    ).images
    assert images.shape == (1, 32, 32, 3)


def test_an_aligned_student_is_polished_by_its_last_step_alone(tiny_corpus: Path, tmp_path: Path) -> None:
    from l2p_mini.paths import PIXEL_MODEL

    teacher = json.loads((PIXEL_MODEL / "transformer" / "config.json").read_text())
    words = distil_arguments(PIXEL_MODEL, tiny_corpus, tmp_path / "few")
    words[words.index("4") : words.index("4") + 2] = ["2"]
    assert main(words) == 0
    model = tmp_path / "few" / "steps-2" / "model"
    student = json.loads((model / "transformer" / "config.json").read_text())
    assert student["alignment"].pop("polish") == 0 != teacher["alignment"].pop("polish")
    assert student == teacher
    assert model_of(model).polish == ()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "distil_steps=3"], "no option here stands for"),
        (["--set", "learning_rate"], "not of the form KEY=VALUE"),
        (["--set", "learnig_rate=1"], "did you mean 'learning_rate'"),
        (["--teacher-steps", "9"], "--steps 4 is no part of the 9 steps"),
    ],
)
def test_mistakes_of_the_command_end_in_one_line(
    start: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main([*distil_arguments(start, tiny_corpus, tmp_path / "few"), *more]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_model_without_a_corpus_beside_it_asks_for_one(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(start), "-o", str(tmp_path / "few"), "--steps", "5"]) == 2
    assert "add --corpus" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_teacher_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.safetensors").touch()
    assert main([str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "few"), "--steps", "5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "m.safetensors is a file; give a run of l2p-transfer" in error


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_karras_sigmas": True},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "shift_terminal": 0.1},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "stochastic_sampling": True},
    ],
    ids=lambda one: next(iter(set(one) - {"_class_name", "shift"}), one["_class_name"]),
)
def test_a_scheduler_that_steps_otherwise_is_refused(scheduler: dict[str, object]) -> None:
    import diffusers
    from l2p_train.distillation import check_schedule

    made = getattr(diffusers, str(scheduler["_class_name"])).from_config(scheduler)
    config = TrainConfig(model=Path("m"), corpus="c", output=Path("o"), distil_steps=4)
    with pytest.raises(TrainError, match="distil_steps learns evenly spaced Euler steps"):
        check_schedule(made, config, 1.8)
    check_schedule(made, TrainConfig(model=Path("m"), corpus="c", output=Path("o")), 1.8)
    plain = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    check_schedule(plain, config, 1.8)
