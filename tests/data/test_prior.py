"""How often class images appear; the numbers without rotation are those of sd-scripts' loop."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.buckets import Bucket
from loralab.data.prior import Rotation, balanced_shares
from loralab.data.sampler import BucketBatchSampler, epoch_plan

SQUARE, WIDE, TALL = Bucket(64, 64), Bucket(48, 80), Bucket(80, 48)
counts = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("repeats", "target", "appearances"),
    [
        ([1, 1, 1], 6, [2, 2, 2]),
        ([1, 1, 1], 7, [3, 2, 2]),  # a third pass ends with its first image
        ([2, 1], 6, [4, 2]),  # 3, then one each: 4, 5, 6
        ([2, 1], 4, [3, 1]),
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),  # the rest is never used
        ([2, 3, 2], 4, [2, 3, 0]),  # 5 of 4: the image that reaches the target keeps its repeats
        ([5], 3, [5]),
    ],
)
def test_without_rotation_the_first_images_are_favoured_as_in_sd_scripts(
    repeats, target, appearances
):
    shares = balanced_shares(repeats, target, rotate=False)
    assert list(shares.always) == appearances
    assert shares.count == 0


@pytest.mark.parametrize(
    ("repeats", "target", "always", "in_turn", "count"),
    [
        ([1, 1, 1], 6, [2, 2, 2], [0, 0, 0], 0),
        ([1, 1, 1], 7, [2, 2, 2], [1, 1, 1], 1),
        ([2, 1], 4, [2, 1], [1, 1], 1),
        ([1, 1, 1, 1], 2, [0, 0, 0, 0], [1, 1, 1, 1], 2),
        ([2, 3, 2], 4, [0, 0, 0], [2, 3, 2], 4),
    ],
)
def test_with_rotation_the_last_places_go_round(repeats, target, always, in_turn, count):
    shares = balanced_shares(repeats, target)
    assert (list(shares.always), list(shares.in_turn)) == (always, in_turn)
    assert shares.count == count


@given(counts, st.integers(1, 60))
def test_an_epoch_shows_exactly_as_many_class_images_as_training_images(repeats, target):
    shares = balanced_shares(repeats, target)
    assert sum(shares.always) + shares.count == target
    assert shares.count <= sum(shares.in_turn)


@given(counts, st.integers(1, 60))
def test_without_rotation_the_target_is_exceeded_by_less_than_one_images_repeats(repeats, target):
    total = sum(balanced_shares(repeats, target, rotate=False).always)
    assert target <= total < target + max(repeats)


def shown(rotation, members, seed, epoch):
    return set(members) - rotation.resting(seed, epoch)


@given(st.lists(st.sampled_from([SQUARE, WIDE, TALL]), min_size=2, max_size=30), st.data())
def test_every_epoch_shows_as_many_of_each_bucket_and_all_get_their_turn(bucket_of, data):
    members = list(range(len(bucket_of)))
    count = data.draw(st.integers(len(set(bucket_of)), len(bucket_of)))
    seed = data.draw(st.integers(0, 5))
    rotation = Rotation(members, bucket_of, count)
    epochs = [shown(rotation, members, seed, epoch) for epoch in range(len(bucket_of))]
    assert {len(epoch) for epoch in epochs} == {count} == {rotation.num_shown}
    by_bucket = [Counter(bucket_of[index] for index in epoch) for epoch in epochs]
    assert all(one == by_bucket[0] for one in by_bucket)
    assert set.union(*epochs) == set(members)


def test_places_are_shared_by_the_size_of_the_groups():
    # 9 places for 12, 4 and 2: exact shares 6, 2 and 1.
    bucket_of = [SQUARE] * 12 + [WIDE] * 4 + [TALL] * 2
    rotation = Rotation(range(18), bucket_of, 9)
    assert rotation.quotas == {SQUARE: 6, WIDE: 2, TALL: 1}


def test_a_small_group_keeps_one_place():
    bucket_of = [SQUARE] * 98 + [TALL]
    assert Rotation(range(99), bucket_of, 10).quotas == {SQUARE: 9, TALL: 1}


def test_turns_are_fair_within_a_bucket():
    rotation = Rotation(range(5), [SQUARE] * 5, 2)
    seen = Counter(i for epoch in range(5) for i in shown(rotation, range(5), 3, epoch))
    assert set(seen.values()) == {2}


def test_turns_depend_on_seed_and_epoch():
    rotation, members = Rotation(range(20), [SQUARE] * 20, 5), range(20)
    assert shown(rotation, members, 0, 0) != shown(rotation, members, 0, 1)
    assert shown(rotation, members, 0, 0) != shown(rotation, members, 1, 0)


def test_plan_leaves_out_what_rests_and_all_epochs_have_the_announced_length():
    bucket_of = [SQUARE] * 6 + [WIDE] * 3 + [SQUARE] * 7 + [WIDE] * 4
    weights = [1.0] * 9 + [0.5] * 11
    rotation = Rotation(range(9, 20), bucket_of, 6)
    options = {"batch_size": 2, "accumulation": 2, "seed": 1, "rotation": rotation}
    sampler = BucketBatchSampler(bucket_of, weights, **options)
    seen = Counter()
    for epoch in range(6):
        plan = epoch_plan(bucket_of, weights, **options, world_size=1, epoch=epoch, shuffle=True)
        real = [
            index
            for part in plan
            for index, weight in zip(part.indices, part.weights, strict=True)
            if weight > 0
        ]
        assert len(plan) == len(sampler)
        assert sorted(index for index in real if index < 9) == list(range(9))
        assert len([index for index in real if index >= 9]) == 6
        assert not set(real) & rotation.resting(1, epoch)
        seen.update(real)
    assert set(seen) == set(range(20))
