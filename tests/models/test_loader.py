"""Which samples each worker takes in each step."""

from dataclasses import replace

import pytest
import torch

from models import DataError, Sinusoids, TensorSamples
from models.data.loader import Sharing, check_sharing, load_steps
from models.data.samples import Chosen
from models.data.wikitext import Blocks

SHARING = Sharing(batch_size=8, accumulation_steps=1, world_size=1, rank=0, partition="iid", seed=3)
COUNT = 30


@pytest.fixture
def samples() -> TensorSamples:
    """Samples that tell their own number, of three classes in no order."""
    numbers = torch.arange(COUNT)
    return TensorSamples(numbers[:, None].double(), (numbers * 7) % 3)


def numbers(batches) -> list[int]:
    return [int(value) for batch in batches for value in batch.inputs[0][:, 0]]


def taken(samples, sharing, steps=range(7), **options) -> list[list[list[int]]]:
    """The numbers that each worker takes in each step: steps × workers × numbers."""
    workers = [
        [numbers(step) for step in load_steps(samples, replace(sharing, rank=rank), steps, **options)]
        for rank in range(sharing.world_size)
    ]
    return [list(step) for step in zip(*workers, strict=True)]


def together(step: list[list[int]]) -> list[int]:
    return sorted(number for worker in step for number in worker)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_has_the_same_samples_on_any_number_of_workers(samples, accumulation):
    alone = taken(samples, SHARING)
    for world_size in (2, 4):
        shared = taken(samples, replace(SHARING, world_size=world_size, accumulation_steps=accumulation))
        assert [together(step) for step in shared] == [together(step) for step in alone]
        assert all(len(worker) == 8 // world_size for step in shared for worker in step)


def test_the_same_seed_gives_the_same_order_and_another_another(samples):
    assert taken(samples, SHARING) == taken(samples, SHARING)
    assert taken(samples, SHARING) != taken(samples, replace(SHARING, seed=4))


def test_going_on_at_a_later_step_gives_what_would_have_come(samples):
    for sharing in (SHARING, replace(SHARING, world_size=4, accumulation_steps=2)):
        assert taken(samples, sharing, range(5, 9)) == taken(samples, sharing, range(9))[5:]


def test_an_epoch_takes_no_sample_twice_and_the_next_one_another_order(samples):
    steps = [together(step) for step in taken(samples, SHARING, range(6))]
    first, second = ([number for step in steps[start : start + 3] for number in step] for start in (0, 3))
    assert len(set(first)) == len(set(second)) == 24
    assert first != second


def test_samples_come_in_passes_of_a_step(samples):
    sharing = replace(SHARING, accumulation_steps=4)
    (step,) = load_steps(samples, sharing, range(1))
    assert [len(batch) for batch in step] == [2, 2, 2, 2]


def test_by_class_each_worker_has_its_own_classes(samples):
    sharing = replace(SHARING, batch_size=9, world_size=3, partition="by_class")
    labels = samples.labels
    seen = [set(), set(), set()]
    for step in taken(samples, sharing, range(6)):
        for worker, chosen in enumerate(step):
            assert len(chosen) == 3
            seen[worker] |= {int(labels[number]) for number in chosen}
    assert seen == [{0}, {1}, {2}]


def test_by_class_uses_the_labels_of_chosen_samples(samples):
    chosen = Chosen(samples, torch.arange(0, COUNT, 2))
    sharing = replace(SHARING, batch_size=3, world_size=3, partition="by_class")
    for step in taken(chosen, sharing):
        assert [int(samples.labels[worker[0]]) for worker in step] == [0, 1, 2]


def test_windows_of_a_series_come_one_after_another():
    dataset = Sinusoids(points=12, features=1, samples=50).load(0)
    windows = [(0, 4), (4, 8), (8, 12)]
    steps = list(load_steps(dataset.train, SHARING, range(6), windows=windows))
    whole = list(load_steps(dataset.train, SHARING, range(2)))
    for number, (batch,) in enumerate(steps):
        (series,) = whole[number // 3]
        start, stop = windows[number % 3]
        assert torch.equal(batch.inputs[0], series.inputs[0][:, start:stop])
        assert torch.equal(batch.targets[0], series.targets[0][:, start:stop])
        assert (batch.windowed, batch.begins) == (True, number % 3 == 0)
    (resumed,) = next(load_steps(dataset.train, SHARING, range(4, 6), windows=windows))
    assert torch.equal(resumed.inputs[0], steps[4][0].inputs[0])


@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_a_target_of_the_whole_series_stays_whole_in_windows(shape):
    samples = TensorSamples(torch.randn(20, 12, 3), torch.randn(20, *shape))
    steps = load_steps(samples, SHARING, range(2), windows=[(0, 4), (4, 12)])
    assert [batch.targets[0].shape for (batch,) in steps] == [(8, *shape)] * 2


def test_reconstruction_keeps_the_input_as_the_target_in_windows_and_types():
    dataset = Sinusoids(points=8, features=1, samples=50, task="reconstruction").load(0)
    ((batch,),) = load_steps(dataset.train, SHARING, range(1), windows=[(0, 8)])
    batch = batch.to(torch.device("cpu"), torch.float32)
    assert batch.targets[0] is batch.inputs[0]
    assert batch.inputs[0].dtype == torch.float32


def test_processes_that_prepare_ahead_give_the_same(samples):
    assert taken(samples, SHARING, range(4), processes=2) == taken(samples, SHARING, range(4))


def test_masked_tokens_are_the_same_on_any_number_of_workers():
    blocks = Blocks(torch.arange(3, 803).numpy() % 50, length=20, vocabulary=50, objective="masked")

    def masked(world_size: int) -> list[list[list[int]]]:
        shared = [
            load_steps(blocks, replace(SHARING, world_size=world_size, rank=rank), range(8))
            for rank in range(world_size)
        ]
        return [
            sorted(row for (batch,) in workers for row in torch.cat([*batch.inputs, *batch.targets], 1).tolist())
            for workers in zip(*shared, strict=True)
        ]

    alone = masked(1)
    assert masked(2) == masked(4) == alone
    # Forty blocks make an epoch of five steps; the next one masks others of the same tokens.
    assert alone[0] != alone[5]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 40}, "30 training samples; take 30 or less"),
        ({"batch_size": 64, "world_size": 64}, "30 training samples"),
        ({"batch_size": 24, "world_size": 2, "partition": "by_class"}, None),
        ({"batch_size": 32, "world_size": 2, "partition": "by_class"}, "each worker has 15 training samples; take 30"),
    ],
)
def test_too_few_samples_are_told(samples, change, told):
    sharing = replace(SHARING, **change)
    if told is None:
        check_sharing(samples, sharing)
        return
    with pytest.raises(DataError, match=told):
        check_sharing(samples, sharing)


def test_by_class_without_classes_is_refused(samples):
    with pytest.raises(DataError, match="have no classes; allowed is iid"):
        check_sharing(TensorSamples(samples.inputs), replace(SHARING, partition="by_class"))
