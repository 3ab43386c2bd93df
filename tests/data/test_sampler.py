"""The epoch plan and its shares; properties are checked on generated data sets."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.buckets import Bucket
from loralab.data.sampler import BucketBatchSampler, epoch_plan

BUCKETS = [Bucket(48, 80), Bucket(64, 64), Bucket(80, 48)]


@st.composite
def setups(draw):
    """Arguments of a plan for 1 to 40 items in up to three buckets."""
    bucket_of = draw(st.lists(st.sampled_from(BUCKETS), min_size=1, max_size=40))
    weight = st.sampled_from([0.25, 0.5, 1.0, 3.0])
    weights = draw(st.lists(weight, min_size=len(bucket_of), max_size=len(bucket_of)))
    return {
        "bucket_of": bucket_of,
        "weights": weights,
        "batch_size": draw(st.integers(1, 5)),
        "accumulation": draw(st.integers(1, 4)),
        "world_size": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 3)),
        "epoch": draw(st.integers(0, 3)),
        "shuffle": draw(st.booleans()),
    }


def samplers(setup):
    """One sampler per rank, at the epoch of the setup."""
    options = {name: value for name, value in setup.items() if name != "epoch"}
    ranks = [BucketBatchSampler(**options, rank=rank) for rank in range(setup["world_size"])]
    for sampler in ranks:
        sampler.set_epoch(setup["epoch"])
    return ranks


def windows(setup):
    size = setup["world_size"] * setup["accumulation"]
    plan = epoch_plan(**setup)
    return [plan[start : start + size] for start in range(0, len(plan), size)]


@given(setups())
def test_each_item_has_weight_exactly_once_in_an_epoch(setup):
    counts = Counter(
        index
        for micro_batch in epoch_plan(**setup)
        for index, weight in zip(micro_batch.indices, micro_batch.weights, strict=True)
        if weight > 0
    )
    assert counts == Counter(range(len(setup["bucket_of"])))


@given(setups())
def test_shares_of_every_window_sum_to_one(setup):
    for window in windows(setup):
        assert sum(sum(part.weights) for part in window) == pytest.approx(1.0, abs=1e-12)


@given(setups())
def test_shares_within_a_window_are_in_proportion_to_the_weights(setup):
    for window in windows(setup):
        pairs = [pair for part in window for pair in zip(part.indices, part.weights, strict=True)]
        real = [(setup["weights"][index], share) for index, share in pairs if share > 0]
        total = sum(weight for weight, _ in real)
        assert all(share == pytest.approx(weight / total) for weight, share in real)


@given(setups())
def test_every_window_is_full_and_has_at_least_one_sample_with_weight(setup):
    for window in windows(setup):
        assert len(window) == setup["world_size"] * setup["accumulation"]
        assert any(weight > 0 for part in window for weight in part.weights)


@given(setups())
def test_every_micro_batch_is_of_one_bucket_and_not_too_large(setup):
    for micro_batch in epoch_plan(**setup):
        assert len({setup["bucket_of"][index] for index in micro_batch.indices}) == 1
        assert 1 <= len(micro_batch.indices) <= setup["batch_size"]


@given(setups())
def test_only_the_remainder_of_each_bucket_is_short(setup):
    real = [part for part in epoch_plan(**setup) if any(part.weights)]
    chunks = Counter(setup["bucket_of"][part.indices[0]] for part in real)
    counts = Counter(setup["bucket_of"])
    size = setup["batch_size"]
    assert chunks == {bucket: -(-count // size) for bucket, count in counts.items()}


@given(setups())
def test_places_number_the_samples_of_a_window_through(setup):
    for window in windows(setup):
        real = [part for part in window if any(part.weights)]
        places = [part.first + n for part in real for n in range(len(part.indices))]
        assert places == list(range(len(places)))
        assert {part.window_size for part in real} == {len(places)}


@given(setups())
def test_steps_are_counted_through_the_epochs(setup):
    steps = [[part.step for part in window] for window in windows(setup)]
    assert all(len(set(window)) == 1 for window in steps)
    start = setup["epoch"] * len(steps)
    assert [window[0] for window in steps] == list(range(start, start + len(steps)))


@given(setups())
def test_fillers_repeat_the_start_of_the_plan(setup):
    plan = epoch_plan(**setup)
    real = [part for part in plan if any(part.weights)]
    for part in plan[len(real) :]:
        assert part.indices == real[part.number % len(real)].indices


@given(setups())
def test_every_rank_gets_the_announced_number_of_micro_batches(setup):
    for sampler in samplers(setup):
        assert len(list(sampler)) == len(sampler)
        assert len(sampler) % setup["accumulation"] == 0


@given(setups())
def test_ranks_together_see_the_plan_in_order(setup):
    shares = [list(sampler) for sampler in samplers(setup)]
    interleaved = [part for step in zip(*shares, strict=True) for part in step]
    assert interleaved == epoch_plan(**setup)
    assert [part.number for part in interleaved] == list(range(len(interleaved)))


@given(setups(), st.data())
def test_resume_at_any_position_yields_the_rest(setup, data):
    for sampler in samplers(setup):
        whole = list(sampler)
        position = data.draw(st.integers(0, len(whole) - 1))
        fresh = samplers(setup)[sampler.rank]
        fresh.load_state_dict({"epoch": setup["epoch"], "position": position})
        assert list(fresh) == whole[position:]
        assert list(fresh) == whole  # the offset is used once


@given(setups())
def test_window_does_not_depend_on_how_it_is_split_between_ranks_and_accumulation(setup):
    size = setup["world_size"] * setup["accumulation"]
    one_rank = epoch_plan(**{**setup, "world_size": 1, "accumulation": size})
    assert epoch_plan(**setup) == one_rank


@given(setups())
def test_order_of_micro_batches_does_not_depend_on_the_window(setup):
    def order(world_size):
        plan = epoch_plan(**{**setup, "world_size": world_size})
        return [part.indices for part in plan if any(part.weights)]

    assert order(1) == order(3)


@given(setups())
def test_plan_is_the_same_every_time(setup):
    assert epoch_plan(**setup) == epoch_plan(**setup)


SMALL = {
    "bucket_of": [BUCKETS[0]] * 3 + [BUCKETS[1]] * 2,
    "weights": [1.0, 1.0, 2.0, 1.0, 1.0],
    "batch_size": 2,
    "accumulation": 2,
    "world_size": 1,
    "seed": 0,
    "epoch": 0,
    "shuffle": False,
}


def test_plan_without_shuffling_is_the_one_worked_out_by_hand():
    plan = [(part.indices, part.weights) for part in epoch_plan(**SMALL)]
    quarter, half = 1 / 4, 1 / 2
    assert plan == [
        ((0, 1), (quarter, quarter)),
        ((2,), (half,)),
        ((3, 4), (half, half)),
        ((0, 1), (0.0, 0.0)),
    ]


def test_mean_over_a_window_does_not_depend_on_the_batch_size():
    losses = [Fraction(loss) for loss in (3, 1, 4, 1, 5)]

    def window_loss(batch_size, accumulation):
        setup = {**SMALL, "batch_size": batch_size, "accumulation": accumulation}
        return sum(
            Fraction(weight).limit_denominator(100) * losses[index]
            for part in epoch_plan(**setup)
            for index, weight in zip(part.indices, part.weights, strict=True)
        )

    assert window_loss(5, 2) == window_loss(1, 5) == window_loss(2, 3) == Fraction(18, 6)


def test_epochs_differ_in_order_and_in_company():
    bucket_of, weights = BUCKETS * 12, [1.0] * 36
    setup = {**SMALL, "bucket_of": bucket_of, "weights": weights, "shuffle": True}
    first, second = (
        [part.indices for part in epoch_plan(**{**setup, "epoch": epoch})] for epoch in (0, 1)
    )
    assert first != second
    assert {frozenset(chunk) for chunk in first} != {frozenset(chunk) for chunk in second}


def test_order_of_the_buckets_differs_between_epochs():
    bucket_of = [Bucket(side, side) for side in range(16, 160, 16)]  # one item each
    setup = {**SMALL, "bucket_of": bucket_of, "weights": [1.0] * 9, "shuffle": True}
    orders = {tuple(part.indices for part in epoch_plan(**{**setup, "epoch": n})) for n in range(4)}
    assert len(orders) == 4


def test_seeds_give_different_plans():
    setup = {**SMALL, "bucket_of": BUCKETS * 12, "weights": [1.0] * 36, "shuffle": True}
    assert epoch_plan(**setup) != epoch_plan(**{**setup, "seed": 1})


def test_state_names_epoch_and_start_position():
    sampler = BucketBatchSampler([BUCKETS[0]] * 4, [1.0] * 4, batch_size=1, accumulation=1, seed=0)
    sampler.load_state_dict({"epoch": 2, "position": 3})
    assert sampler.state_dict() == {"epoch": 2, "position": 3}


def test_announcing_the_epoch_keeps_the_start_position():
    sampler = BucketBatchSampler([BUCKETS[0]] * 4, [1.0] * 4, batch_size=1, accumulation=1, seed=0)
    sampler.load_state_dict({"epoch": 2, "position": 3})
    sampler.set_epoch(2)
    assert len(list(sampler)) == 1


def test_end_of_an_epoch_is_loaded_as_the_start_of_one():
    sampler = BucketBatchSampler([BUCKETS[0]] * 4, [1.0] * 4, batch_size=1, accumulation=1, seed=0)
    sampler.load_state_dict({"epoch": 2, "position": 4})
    assert sampler.position == 0


def test_lightning_reaches_the_sampler_through_its_own_attribute():
    sampler = BucketBatchSampler([BUCKETS[0]], [1.0], batch_size=1, accumulation=1, seed=0)
    assert sampler.sampler is sampler


def test_shares_by_count_worked_by_hand():
    # Seven items in micro-batches of two, three of those to a step, so the second step is short.
    # By count an item weighs w / 2 / 3 or w / 1 / 3.
    setup = {
        "bucket_of": [Bucket(64, 64)] * 7,
        "weights": [1.0, 0.5, 1.0, 1.0, 2.0, 1.0, 1.0],
        "batch_size": 2, "accumulation": 3, "world_size": 1, "seed": 0, "epoch": 0,
        "shuffle": False,
    }  # fmt: skip
    plan = epoch_plan(**setup, by_count=True)
    assert [part.weights for part in plan] == [
        pytest.approx((1 / 6, 0.5 / 6)),
        pytest.approx((1 / 6, 1 / 6)),
        pytest.approx((2 / 6, 1 / 6)),
        pytest.approx((1 / 3,)),
        (0.0, 0.0),
        (0.0, 0.0),
    ]
