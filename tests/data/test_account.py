"""The account of every image and the receipt of the order."""

import hashlib
import json

import pytest

from loralab.data.account import Account, OrderReceipt, Tally
from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop
from loralab.data.dataset import Item
from loralab.data.sources import Source
from loralab.errors import Problem


@pytest.fixture
def items(records):
    source = Source("images", tuple(records))
    plan = plan_crop(64, 64, Bucket(64, 64))
    return [Item(record, repeat, plan, source) for record in records for repeat in (0, 1)]


def batch(keys, *, number=0, epoch=0, captions=None, cuts=None, fillers=None, failures=()):
    return {
        "keys": keys,
        "captions": captions or ["a"] * len(keys),
        "cuts": cuts or ["whole"] * len(keys),
        "is_filler": fillers or [False] * len(keys),
        "failures": list(failures),
        "epoch": epoch,
        "micro_batch": number,
    }


def tally(*batches):
    noted = Tally()
    for one in batches:
        noted.add(one)
    return noted


def receipt(*tallies, items):
    account = Account(items)
    account.add(tallies)
    return account.receipts[-1].sha256


def test_receipt_is_a_chain_of_hashes_worked_out_here(items):
    first, second = items[0].key, items[1].key
    account = Account(items)
    account.add([tally(batch([first, second]), batch([first], number=1))])
    value = ""
    for rows in ([[first, "a", "whole"], [second, "a", "whole"]], [[first, "a", "whole"]]):
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        value = hashlib.sha256((value + digest).encode()).hexdigest()
    assert account.receipts == [OrderReceipt(0, 2, value)]


@pytest.mark.parametrize(
    "change",
    [
        {"captions": ["a", "b", "c "]},
        {"cuts": ["whole", "whole", "mirrored"]},
        {"keys": [0, 1, 3]},
        {"keys": [1, 0, 2]},
    ],
)
def test_receipt_changes_with_caption_cut_image_and_order(items, change):
    usual = {"keys": [0, 1, 2], "captions": ["a", "b", "c"], "cuts": ["whole"] * 3}

    def made(keys, **options):
        return receipt(tally(batch([items[n].key for n in keys], **options)), items=items)

    assert made(**usual) == made(**usual)
    assert made(**usual) != made(**(usual | change))


def test_receipt_is_of_the_plan_whichever_rank_had_which_batch(items):
    batches = [batch([items[n].key], number=n) for n in range(4)]
    alone = receipt(tally(*batches), items=items)
    two = receipt(tally(batches[0], batches[2]), tally(batches[1], batches[3]), items=items)
    four = receipt(*(tally(one) for one in batches), items=items)
    assert alone == two == four
    assert alone != receipt(tally(*batches[:3]), items=items)


def test_receipt_does_not_depend_on_when_the_ranks_meet(items):
    batches = [batch([items[n].key], number=n) for n in range(4)]
    account = Account(items)
    account.add([tally(batches[0]), tally(batches[1])])
    account.add([tally(batches[2]), tally(batches[3])])
    assert account.receipts[-1].sha256 == receipt(tally(*batches), items=items)


def test_fillers_are_no_part_of_the_receipt(items):
    real = batch([items[0].key])
    filler = batch([items[0].key], number=1, fillers=[True])
    assert receipt(tally(real, filler), items=items) == receipt(tally(real), items=items)


def test_every_epoch_has_a_receipt_of_its_own(items):
    account = Account(items)
    account.add([tally(batch([items[0].key]), batch([items[0].key], epoch=1))])
    assert [r.epoch for r in account.receipts] == [0, 1]
    assert account.receipts[0].sha256 == account.receipts[1].sha256


@pytest.fixture
def account(items, photos):
    """Five samples: two images, one of them three times, a filler that stands in for a third."""
    keys = [item.key for item in items]
    lost = Problem(str(photos / "x.png"), "x.png is damaged.")
    account = Account(items, held_out=items[:4], skipped=[lost, Problem(lost.key, "no caption.")])
    failures = [(keys[4], "c.webp is gone.")]
    account.add(
        [
            tally(batch([keys[0], keys[1]]), batch([keys[0]], number=1)),
            tally(batch([keys[2], keys[3]], fillers=[False, True], failures=failures)),
        ]
    )
    return account


def test_seen_repeated_and_fillers_are_all_samples_of_all_batches(account):
    figures = account.figures()
    assert figures == {
        "micro_batches": 3,
        "samples": 5,
        "seen": 2,
        "repeated": 2,
        "fillers": 1,
        "not_reached": 0,  # the third failed
        "failed": 1,
        "skipped": 1,
        "held_out": 4,
    }
    assert figures["seen"] + figures["repeated"] + figures["fillers"] == figures["samples"]


def test_account_names_every_image_with_count_and_reason(account, photos):
    content = json.loads(account.as_json())
    assert content["figures"] == account.figures()
    assert content["visits"] == {
        str(photos / "a.jpg"): 3,
        str(photos / "b.png"): 1,
        str(photos / "nested" / "c.webp"): 0,
    }
    path = str(photos / "nested" / "c.webp")
    assert content["failed"] == [{"path": path, "count": 1, "reason": "c.webp is gone."}]
    assert [entry["reason"] for entry in content["skipped"]] == ["x.png is damaged.", "no caption."]


def test_account_goes_on_from_its_state(account, items):
    again = Account(items, held_out=items[:4], skipped=account.skipped)
    again.load_state_dict(account.state_dict())
    assert again.as_json() == account.as_json()
    more = batch([items[5].key], number=2)
    for one in (account, again):
        one.add([tally(more)])
    assert again.as_json() == account.as_json()
    assert again.figures()["seen"] == 3
