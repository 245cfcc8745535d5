"""What trains, against the released model and by rule."""

import json
from pathlib import Path

import pytest
import torch
from l2p_train import TrainError
from l2p_train.freeze import plan_for_model, plan_freeze

SIZES = {f"trunk.layers.{i}.w": 10 for i in range(12)} | {
    "trunk.embed.w": 1,
    "trunk.refiner.0.w": 2,
    "trunk.pad": 3,
    "detailer_head.w": 4,
}
BLOCKS = [f"trunk.layers.{i}" for i in range(12)]


def plan(**settings):
    return plan_freeze(
        SIZES,
        blocks=BLOCKS,
        shallow=["trunk.embed", "trunk.refiner", "trunk.pad", "detailer_head"],
        new_ends=["trunk.embed", "detailer_head"],
        **settings,
    )


def test_shallow_on_z_image_trains_what_the_released_file_trained(z_image):
    from l2p_arch import L2PTransformer

    config = json.loads((z_image / "transformer" / "config.json").read_text())
    with torch.device("meta"):
        model = L2PTransformer(family="z-image", trunk_config=config["trunk_config"])
    found = plan_for_model(model, trainable="shallow")
    assert found.trainable_count + found.frozen_count == 6_166_464_515
    assert round(found.trainable_count / 1e9, 3) == 2.548
    frozen = {name for name, _ in model.named_parameters()} - set(found.trainable)
    assert {name.split(".")[2] for name in frozen} == {str(i) for i in range(5, 25)}


@pytest.mark.parametrize(
    ("trainable", "blocks"), [(0, 0), (1, 2), (3, 6), (6, 12), (9, 12), ("shallow", 10), ("mid", 12)]
)
def test_n_counts_blocks_at_each_end(trainable, blocks):
    names = plan(trainable=trainable).trainable
    layers = [name for name in names if "layers" in name]
    assert len(layers) == blocks
    half = blocks // 2
    if blocks < 12:
        assert layers == [f"trunk.layers.{i}.w" for i in (*range(half), *range(12 - half, 12))]
    assert {"trunk.embed.w", "trunk.refiner.0.w", "trunk.pad", "detailer_head.w"} <= set(names)


def test_full_trains_all_and_head_only_the_new_ends():
    assert plan(trainable="full").frozen_count == 0
    head_only = plan(trainable="head-only")
    assert head_only.trainable == ("trunk.embed.w", "detailer_head.w")
    assert head_only.new_ends == set(head_only.trainable)


def test_block_1_does_not_match_block_10():
    names = plan(trainable=2).trainable
    assert [name for name in names if "layers" in name] == [f"trunk.layers.{i}.w" for i in (0, 1, 10, 11)]


def test_patterns_choose_exactly_and_freeze_patterns_take_out():
    chosen = plan(train_patterns=["trunk.layers.1?.*", "detailer_head.*"], freeze_patterns=["*.11.*"])
    assert chosen.trainable == ("trunk.layers.10.w", "detailer_head.w")


def test_mistakes_name_what_is_wrong():
    with pytest.raises(TrainError, match="'nothing' matches no parameter"):
        plan(train_patterns=["nothing"])
    with pytest.raises(TrainError, match=r"shalow.*shallow, mid, full, head-only"):
        plan(trainable="shalow")
    with pytest.raises(TrainError, match='trainable is 13, and the model has 12 blocks; "full" trains all'):
        plan(trainable=13)
    with pytest.raises(TrainError, match="nothing trains"):
        plan(freeze_patterns=["*"])


def test_the_table_counts_everything_and_joins_equal_blocks(tmp_path: Path):
    found = plan(trainable=2)
    assert found.trainable_count + found.frozen_count == sum(SIZES.values())
    table = found.table()
    assert "trunk.layers.2 ... 9" in table and len(table.splitlines()) == 9
    found.save(tmp_path / "table.json")
    assert '"frozen_parameters": 80' in (tmp_path / "table.json").read_text()


def test_blocks_of_two_kinds_are_two_lines():
    """FLUX.1 has 19 double and 38 single blocks, of very different sizes."""
    blocks = [f"trunk.double.{i}" for i in range(3)] + [f"trunk.single.{i}" for i in range(4)]
    sizes = {f"{name}.w": 10 for name in blocks} | {"head.w": 1}
    table = plan_freeze(sizes, blocks=blocks, shallow=["head"], new_ends=["head"], trainable=1).table()
    names = [line[:44].rstrip() for line in table.splitlines()[1:-1]]
    assert names == [
        "head",
        "trunk.double.0",
        "trunk.double.1 ... 2",
        "trunk.single.0 ... 2",
        "trunk.single.3",
    ]


def test_a_weight_under_an_adapter_cannot_train_as_a_whole():
    sizes = {
        "trunk.layers.0.to_q.base_layer.weight": 4,
        "trunk.layers.0.to_q.lora_A.default.weight": 2,
        "detailer_head.out.weight": 3,
    }
    places = {"blocks": ["trunk.layers.0"], "shallow": ["detailer_head"], "new_ends": ["detailer_head"]}
    with pytest.raises(TrainError, match=r"take trunk.layers.0.to_q.weight, which has a low-rank adapter"):
        plan_freeze(sizes, **places, trainable="lora-only", train_patterns=["trunk.layers.0.*"])
    plan = plan_freeze(sizes, **places, trainable="lora-only", train_patterns=["*.lora_*"])
    assert plan.trainable == ("trunk.layers.0.to_q.lora_A.default.weight",)
