"""Collating samples and checking what comes out."""

import pytest
import torch

from loralab.data.batch import Sample, check_batch, collate, fits


def sample(index=0, **changes):
    fields = {
        "key": f"digest#{index}",
        "index": index,
        "caption": f"caption {index}",
        "epoch": 2,
        "micro_batch": 7,
        "weight": 0.25 * (index + 1),
        "original_size": (1800, 1200),
        "crop_top_left": (16, index),
        "target_size": (64, 48),
        "moments": torch.full((8, 8, 6), float(index)),
    }
    return Sample(**{**fields, **changes})


@pytest.fixture
def batch():
    return collate([sample(0), sample(1)])


def test_batch_keeps_every_field_in_the_order_of_the_samples(batch):
    assert batch["captions"] == ["caption 0", "caption 1"]
    assert batch["keys"] == ["digest#0", "digest#1"]
    assert (batch["epoch"], batch["micro_batch"]) == (2, 7)
    assert batch["original_size"].tolist() == [[1800, 1200]] * 2
    assert batch["crop_top_left"].tolist() == [[16, 0], [16, 1]]
    assert batch["target_size"].tolist() == [[64, 48]] * 2
    assert batch["loss_weight"].tolist() == [0.25, 0.5]
    assert batch["index"].tolist() == [0, 1]
    assert batch["moments"][:, 0, 0, 0].tolist() == [0.0, 1.0]


def test_batch_of_cached_samples_passes_the_check(batch):
    check_batch(batch)
    assert "images" not in batch


def test_batch_of_images_passes_the_check():
    batch = collate([sample(moments=None, image=torch.zeros(3, 64, 48))])
    check_batch(batch)
    assert "moments" not in batch


def test_recorded_latents_stand_for_moments(batch):
    del batch["moments"]
    check_batch({**batch, "latents": torch.zeros(2, 4, 8, 6), "noise": torch.zeros(2, 4, 8, 6)})


def test_samples_of_two_micro_batches_are_not_mixed():
    with pytest.raises(AssertionError, match="several micro-batches"):
        collate([sample(), sample(micro_batch=8)])


def test_cached_and_uncached_samples_are_not_mixed():
    with pytest.raises(AssertionError, match="cached and uncached"):
        collate([sample(), sample(moments=None, image=torch.zeros(3, 64, 48))])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"surplus": 1}, "unknown in the batch"),
        ({"keys": ["one"]}, "1, 2"),
        ({"loss_weight": torch.ones(2, dtype=torch.float64)}, "loss_weight is torch.float64"),
        ({"original_size": torch.zeros(2, 4, dtype=torch.int64)}, "original_size is"),
        ({"target_size": torch.tensor([[64, 48], [48, 64]])}, "more than one bucket"),
        ({"images": torch.zeros(2, 3, 64, 48)}, "one of moments, images or latents"),
        ({"moments": torch.zeros(2, 8, 6, 8)}, "6, 8"),
        ({"moments": torch.zeros(2, 7, 8, 6)}, "not in pairs"),
        ({"moments": torch.zeros(3, 8, 8, 6)}, "moments is"),
    ],
)
def test_check_refuses(batch, changes, match):
    with pytest.raises(AssertionError, match=match):
        check_batch({**batch, **changes})


def test_check_refuses_a_missing_key(batch):
    del batch["keys"]
    with pytest.raises(AssertionError, match=r"missing from the batch: \['keys'\]"):
        check_batch(batch)


def test_latent_cells_fit_when_one_whole_factor_covers_both_sides():
    assert fits((8, 6), (64, 48))
    assert not fits((8, 6), (64, 96))
    assert not fits((8, 7), (64, 48))
    assert not fits((0, 6), (64, 48))
