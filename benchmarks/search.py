"""How long searching takes: python benchmarks/search.py [--photographs 100000 1000000] [--out DIR].

Synthetic features of width 512 stand for photographs, which are empty files; 100 real ones are added afterwards. The
image tower has ViT-B/32's form and random weights. Figures are CPU time of one thread, then wall time.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import open_clip
import torch

import coop
from coop.clip.backbone import FrozenCLIP
from coop.data.feature_cache import SHARD_ROWS, identify
from coop.data.features import FeatureExtractor
from coop.data.image_files import find_images
from coop.retrieval.encoding import Encoder, encode_photographs
from coop.retrieval.ranking import best_photographs
from coop.system.files import write_json

PER_FOLDER, ADDED, TOP = 1000, 100, 20


def make(root: Path, count: int, extractor: FeatureExtractor) -> None:
    """Empty files, and features of them in the cache."""
    for index in range(count):
        folder = root / f"{index // PER_FOLDER:05d}"
        if index % PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{index % PER_FOLDER:04d}.jpg").touch()
    paths, cache = [path for path, _ in find_images([str(root)])], extractor.entry(None, None)
    for start in range(0, count, SHARD_ROWS):
        rows = paths[start : start + SHARD_ROWS]
        cache.add(identify(rows), torch.randn(len(rows), extractor.clip.embed_dim))


def measure(root: Path, count: int, encoder: Encoder) -> dict[str, float]:
    """Seconds of each step, by name."""
    found: dict[str, float] = {"photographs": count}

    def timed(name, function):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        found[f"{name}: CPU s"], found[f"{name}: wall s"] = time.process_time() - cpu, time.perf_counter() - wall
        return result

    paths = timed("list the folder", lambda: [path for path, _ in find_images([str(root)])])
    photographs = timed("load the features", lambda: encode_photographs(encoder.photographs, paths))
    assert photographs.new == 0 and len(photographs.paths) == count
    query = torch.nn.functional.normalize(torch.randn(encoder.clip.embed_dim), dim=0)
    timed("search", lambda: best_photographs(encoder, photographs.features, query, TOP))
    images = sorted((Path(coop.__file__).parent / "assets" / "mini" / "images").rglob("*.jpg"))[:ADDED]
    (root / "added").mkdir()
    for number, image in enumerate(images):
        shutil.copy(image, root / "added" / f"{number}.jpg")
    paths = [path for path, _ in find_images([str(root)])]
    found["encoded after 100 were added"] = timed(
        "load, and encode 100 new", lambda: encode_photographs(encoder.photographs, paths)
    ).new
    found["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    clip = FrozenCLIP(open_clip.create_model("ViT-B-32"), open_clip.get_tokenizer("ViT-B-32"), "ViT-B-32")
    clip.fingerprint()
    for count in given.photographs:
        with tempfile.TemporaryDirectory() as work:
            encoder = Encoder(
                clip, FeatureExtractor(clip, torch.device("cpu"), 0, cached=True, cache_dir=f"{work}/cache")
            )
            make(Path(work) / "photographs", count, encoder.photographs)
            found = measure(Path(work) / "photographs", count, encoder)
        write_json(given.out / f"search_{count}.json", found)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
