"""One process that measures what images cost: loading, filling the latent cache, starting again.

`python data.py FOLDER` leaves `data.json` in the folder. Every figure is taken in turns with its
floor: the demo's bare step, the bare VAE on ready pixels, a listing of the same folder.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from floor import Floor
from PIL import Image
from steps import demo, floor_recipe, stored

from loralab.app.logs import quiet_libraries
from loralab.data.buckets import Bucket
from loralab.data.crop import fit_nearest
from loralab.data.dataset import BucketedDataset, make_items, read_pixels
from loralab.data.file_index import SETTLING_NS, FileIndex
from loralab.data.index import find_images, read_images
from loralab.data.latent_cache import LatentCache
from loralab.data.listing import list_folder
from loralab.data.sources import Source
from loralab.models.codec import LatentCodec
from loralab.training.cache_filling import cut_batches, fill_cache

ROUNDS, NUM_FILES, SIDE = 5, 5000, 256
FILLINGS, NUM_ENCODED = 9, 48


def seconds(action: Callable[[], object]) -> float:
    """Return the CPU time of an action; the machine may be shared."""
    started = time.process_time()
    action()
    return time.process_time() - started


def loading(folder: Path) -> tuple[dict[str, list[float]], LatentCodec]:
    """Return milliseconds per batch: the loader without workers, and the demo's bare step."""
    config, survey, job = demo(folder)
    data = job.datamodule
    data.prepare_data()
    floor = Floor(**floor_recipe(config, survey))
    loader = data.train_dataloader()
    found: dict[str, list[float]] = {"loader": [], "step": []}
    for epoch in range(ROUNDS):
        loader.batch_sampler.set_epoch(epoch)
        batches = []
        taken = seconds(partial(batches.extend, loader))
        found["loader"].append(1000 * taken / len(batches))
        pairs = stored(job.module, batches)
        taken = seconds(lambda pairs=pairs: [floor.step(*pair) for pair in pairs])
        found["step"].append(1000 * taken / len(batches))
    return found, data.load_codec()


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write captioned JPEGs; bytes after the end make each a file of its own."""
    folder.mkdir()
    buffer = io.BytesIO()
    noise = torch.rand(3, size[1] // 4, size[0] // 4).mul(255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(noise).resize(size).save(buffer, "JPEG", quality=92)
    for number in range(count):
        file = folder / f"{number:05d}.jpg"
        file.write_bytes(buffer.getvalue() + str(number).encode())
        file.with_suffix(".txt").write_text("a photo")
    return folder


def filling(folder: Path, codec: LatentCodec) -> dict[str, list[float]]:
    """Return images per second: from files to a cache on disk, and of the VAE alone."""
    photos = write_photos(folder / "photos", NUM_ENCODED, (SIDE * 3 // 2, SIDE * 3 // 2))
    fit = partial(fit_nearest, buckets=(Bucket(SIDE, SIDE),))
    records = read_images(list_folder(photos, key="photos").entries, key="photos").records
    items = make_items([Source("photos", tuple(records))], fit)
    found: dict[str, list[float]] = {"ours": [], "floor": []}

    @torch.inference_mode()
    def encode(batches: list[torch.Tensor]) -> None:
        for pixels in batches:
            codec.moments(pixels)

    for number in range(FILLINGS + 1):  # the first warms up
        cache = LatentCache(folder / f"cache-{number}", vae_digest="demo")
        entries = BucketedDataset(items, cache=cache, seed=0).required()
        ready = [
            torch.stack([read_pixels(entry.item) for entry in batch])
            for batch in cut_batches(entries)
        ]
        turns = {
            "floor": partial(encode, ready),
            "ours": partial(fill_cache, cache, entries, lambda: codec),
        }
        for name in sorted(turns, reverse=bool(number % 2)):  # neither is always first
            started = time.perf_counter()  # a thread of ours decodes beside the VAE
            turns[name]()
            if number:
                found[name].append(NUM_ENCODED / (time.perf_counter() - started))
    return found


def starting(folder: Path) -> dict[str, list[float]]:
    """Return seconds for many images: first start, later starts and a listing of the folder."""
    photos = write_photos(folder / "many", NUM_FILES, (SIDE, SIDE))
    time.sleep(SETTLING_NS / 1e9)  # younger files are not remembered
    fit = partial(fit_nearest, buckets=(Bucket(SIDE, SIDE),))
    cache = LatentCache(folder / "many-cache", vae_digest="demo")

    def entries() -> list[str]:
        index = FileIndex(folder / "many-cache" / "files.json")
        found = read_images(list_folder(photos, key="photos").entries, key="photos", files=index)
        index.save()
        items = make_items([Source("photos", tuple(found.records))], fit)
        assert len(items) == NUM_FILES
        return [entry.key for entry in BucketedDataset(items, cache=cache, seed=0).required()]

    first = seconds(entries)
    moments = torch.zeros(8, SIDE // 8, SIDE // 8)
    for key in entries():
        cache.write(key, moments)
    later, listing = [], []
    for _ in range(ROUNDS):
        listing.append(seconds(lambda: [path.stat() for path in find_images(photos, "photos")[0]]))
        later.append(seconds(lambda: cache.missing(entries())))
    return {"first": [first], "later": later, "listing": listing}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    quiet_libraries()
    load, codec = loading(folder)
    figures = {"loading": load, "filling": filling(folder, codec), "starting": starting(folder)}
    figures["size"] = {"files": NUM_FILES, "side": SIDE, "cores": os.cpu_count()}
    (folder / "data.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
