"""python -m coop.export run=RUN: a learned prompt as class weights, as an ONNX model, or on the Hugging Face hub."""

from coop.cli.options import run_command

USAGE = """python -m coop.export run=RUN [out=DIR] [onnx=true] [--config-dir DIR]
python -m coop.export run=RUN push=USER/NAME [license=mit] [private=true]

  run=RUN          a run's folder, the one that holds prompt.safetensors; or hf:USER/NAME, on the Hugging Face hub
  out=DIR          where the files go (without it: the run's folder; of the hub, the current one)
  --config-dir DIR the folder of your own configs, where the run's method is one of them
  onnx=true        also write model.onnx: image encoder and classifier (pip install 'coop-clip[onnx]')
  push=USER/NAME   upload prompt, config, results and a model card to the hub instead; run=hf:USER/NAME reads them
  license=NAME     of what was learned, as the hub calls it
  private=true     for a new repository

class_weights.safetensors holds text_features (K, E), L2-normalized, and logit_scale; class names and the image
preprocessing are in its metadata, under "coop". logits = exp(logit_scale) * image_features @ text_features.T"""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_command("export", USAGE)

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

import coop
from coop.cli.options import parse
from coop.clip.backbone import normalize
from coop.errors import CoopError, first_line
from coop.methods import Method
from coop.runs import ONNX, WEIGHTS
from coop.runs.hub import local_folder, output_folder, upload
from coop.runs.trained import load_trained
from coop.system.files import write_atomically

OPSET = 18


@dataclass
class Options:
    """What the command line may set; USAGE says what each means."""

    run: str = "???"
    out: str | None = None
    onnx: bool = False
    config_dir: str | None = None
    push: str | None = None
    license: str | None = None
    private: bool = False


def main(words: list[str]) -> int:
    """Write the files and say where they are; returns the exit code."""
    plain, options = parse(words, Options)
    if plain:
        raise CoopError(f"{plain[0]}: expected key=value; run=RUN takes the folder of a run")
    run_dir = local_folder(options.run)
    if options.push:
        print(f"uploaded {upload(run_dir, options.push, options.license, options.private)}")
        return 0
    out = Path(options.out).expanduser() if options.out else output_folder(options.run)
    if options.onnx:
        require_onnx()
    method = load_trained(run_dir, accelerator="cpu", config_dir=options.config_dir).method
    if method.text_depends_on_image:
        raise CoopError(
            f"method={type(method).__name__}: has text features of its own for each image, so that no class weights "
            "and no ONNX model without the text encoder can stand for it; python -m coop.predict applies it"
        )
    if not (by_class_weights(method) or options.onnx):
        raise CoopError(
            f"method={type(method).__name__}: does not classify by class weights and frozen image features alone; "
            "onnx=true exports the whole classifier"
        )
    if by_class_weights(method):
        write_class_weights(method, out / WEIGHTS)
        print(f"weights  {out / WEIGHTS}")
    if options.onnx:
        write_onnx(method, out / ONNX)
        print(f"onnx     {out / ONNX}")
    return 0


def by_class_weights(method: Method) -> bool:
    """Whether class weights and the frozen image tower's features are the whole classifier."""
    return type(method).logits is Method.logits and not method.needs_images and method.feature_kind == "normalized"


@torch.no_grad()
def write_class_weights(method: Method, path: Path) -> None:
    """Write text_features (K, E), L2-normalized, and logit_scale, with class names and preprocessing as metadata."""
    tensors = {
        "text_features": method.text_features().float().cpu().contiguous(),
        "logit_scale": method.logit_scale.float().cpu().clone(),
    }
    write_atomically(path, save(tensors, metadata=description(method)))


def description(method: Method) -> dict[str, str]:
    """What is needed to use exported files, as their metadata: classes in the order of the logits, preprocessing."""
    about = {
        "version": coop.__version__,
        "classnames": method.classnames,
        "backbone": method.clip.name,
        "pretrained": method.clip.pretrained,
        "preprocess": asdict(method.clip.preprocess_cfg),
    }
    return {"coop": json.dumps(about, ensure_ascii=False)}


class ImageClassifier(nn.Module):
    """Preprocessed images (B, 3, H, W) to logits (B, K), as one module."""

    def __init__(self, method: Method):
        super().__init__()
        self.merged = method.merged_image_tower()
        self.visual = self.merged or method.clip.model.visual  # with its weights a part of this module
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        if self.merged is None:
            return self.method.logits(self.method.encode_image(images))
        features = self.merged(images)
        # CoCa's towers give their tokens as well.
        features = features[0] if isinstance(features, tuple) else features
        return self.method.logits(features if self.method.feature_kind == "raw" else normalize(features))


def require_onnx() -> None:
    """Raises CoopError, with the command that fixes it, where the packages for ONNX are not installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise CoopError(f"onnx=true: needs the packages {' and '.join(missing)}; pip install 'coop-clip[onnx]'")


@torch.no_grad()
def write_onnx(method: Method, path: Path) -> None:
    """Write images (B, 3, H, W) to logits (B, K), any B; class names and preprocessing as the model's metadata."""
    import onnx

    if type(method).forward is not Method.forward:
        text_features = method.text_features()  # they enter the file as numbers
        method.text_features = lambda: text_features
    size = method.clip.preprocess_cfg.size
    height, width = (size, size) if isinstance(size, int) else size
    module = ImageClassifier(method).eval().float()
    try:
        model = torch.onnx.export(
            module,
            (torch.zeros(2, 3, height, width),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        without = "; without onnx=true the class weights are exported" if by_class_weights(method) else ""
        raise CoopError(
            f"onnx=true: torch cannot write the image tower of {method.clip.name} as ONNX "
            f"({first_line(error)}){without}"
        ) from error
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise CoopError(
            f"onnx=true: {type(method).__name__} fixes the number of images in a batch, by len(tensor) or the like; "
            "tensor.shape[0] leaves it open"
        )
    onnx.helper.set_model_props(model, description(method))
    write_atomically(path, model.SerializeToString())
