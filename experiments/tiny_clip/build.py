"""Build the small CLIP: python experiments/tiny_clip/build.py FOLDER.

FOLDER/model is what open_clip loads as local-dir:FOLDER/model; FOLDER/work holds what a killed run goes on from.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from export import assemble, fit_logit_scale, model_config, rescale_residual_stream, write_model
from image_tower import JointSpace, joint_space, load_tower
from meaning import kinds_of, sentence_vectors, synset_targets, word_targets
from open_clip import IMAGENET_CLASSNAMES
from photographs import media_shifts, sample_photographs, tower_features, views
from prompts import PHOTO, Prompts
from text_tower import TextTower, Training, train
from torch import nn
from wordnet import read_wordnet
from words import classes_below, collect_words, imagenet_synsets

from coop.errors import CoopError

WIDTH = 256
RESIDUAL_SCALE = 0.4
FILLER_STRENGTH = 1.0
CARD = Path(__file__).with_name("MODEL_CARD.md")


def learn_words(wordnet_folder: Path, work: Path, tower: nn.Module, space: JointSpace, seed: int) -> Prompts:
    """Everything that the text tower is taught."""
    wordnet, leaves = read_wordnet(wordnet_folder), imagenet_synsets()
    words = collect_words(wordnet, leaves)
    offsets = sorted({offset for word in words for offset in word.senses} | set(leaves))
    vectors = sentence_vectors(wordnet, offsets, work / "definitions.safetensors")
    targets = synset_targets(wordnet, offsets, leaves, vectors, space.prototypes)
    shown, bare = word_targets(words, targets)
    media = media_shifts(tower, space, sample_photographs())
    kinds = kinds_of(wordnet, words, classes_below(wordnet, leaves))
    return Prompts(words, shown, bare, kinds, media, FILLER_STRENGTH, seed)


@torch.no_grad()
def logit_scale(tower: nn.Module, space: JointSpace, text: TextTower, prompts: Prompts) -> float:
    """At the sample photographs, the scale at which the new model is as sure as the image tower's own classifier."""
    features = tower_features(tower, [view for photograph in sample_photographs() for view in views(photograph)])
    image_features = F.normalize(features @ space.projection.T, dim=-1)
    text_features = text.in_batches([prompts.row(PHOTO.format(name)) for name in IMAGENET_CLASSNAMES], 4)
    return fit_logit_scale(tower.classifier(features), image_features @ text_features.T)


def build(folder: Path, wordnet_folder: Path, training: Training) -> Path:
    """Run the whole recipe; the folder of the model.

    Raises:
        CoopError: a package, a file of WordNet or write access is missing; a checkpoint is of other settings.
    """
    tower = load_tower()
    space = joint_space(tower.classifier, WIDTH)
    prompts = learn_words(wordnet_folder, folder / "work", tower, space, training.seed)
    text = train(prompts, space.prototypes, training, folder / "work" / "checkpoint.pt")
    config = model_config(training, WIDTH, RESIDUAL_SCALE)
    clip = assemble(config, tower, space, text, logit_scale(tower, space, text, prompts))
    rescale_residual_stream(clip, RESIDUAL_SCALE)
    write_model(clip, config, CARD.read_text(encoding="utf-8"), folder / "model")
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="holds data.noun, index.noun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Training.steps, help="of the text tower's training")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums depend on how they are divided: the same bits on a machine with more cores
    try:
        model = build(args.folder, args.wordnet, Training(seed=args.seed, steps=args.steps))
    except CoopError as error:
        sys.exit(f"error: {error}")
    print(f"{model}: {(model / 'open_clip_model.safetensors').stat().st_size / 1e6:.1f} MB")
    print(f"python -m coop.train backbone=open_clip backbone.model=local-dir:{model.resolve()}")


if __name__ == "__main__":
    main()
