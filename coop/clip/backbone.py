"""FrozenCLIP: any open_clip model, frozen, behind the few calls that prompt learning needs."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from coop.clip.last_layer import PART, LastLayer, into_last_layer
from coop.clip.loading import load_model
from coop.clip.local import check_local_features, image_tokens
from coop.clip.snapshot import Parts, Snapshot
from coop.clip.text.encoder import PromptEncoder
from coop.clip.text.plain import text_blocks, token_embedding
from coop.clip.text.sharded import ShardedPromptEncoder, is_distributed
from coop.errors import CoopError

TEXT_BATCH = 256
#: What the image tower gives of an image: "normalized" (B, E), L2-normalized; "raw" (B, E), before that; "tokens"
#: (B, 1 + L, E), the pooled feature and L local ones, each L2-normalized; "last_layer" (B, ...), what comes into the
#: last layer (`coop.clip.last_layer`).
FeatureKind = Literal["normalized", "raw", "tokens", "last_layer"]


class FrozenCLIP(nn.Module):
    """An open_clip model whose weights never change and which is always in eval mode.

    Frozen means: no parameter takes a gradient, and `train()` from outside (Lightning calls it before every epoch)
    does not reach the towers, so that the batch norm of ResNets keeps its statistics and dropout stays off.

    Args:
        model: an open_clip `CLIP`, `CustomTextCLIP` or `CoCa`.
        tokenizer: open_clip's tokenizer for it.
        name: what results call this backbone.
        pretrained: tag or file of its weights, for the record.
        precision: open_clip's name of the weights' precision, for the record.

    Attributes:
        preprocess_cfg: the model's own image preprocessing: size, mean, std, interpolation, resize mode.
    """

    def __init__(
        self, model: nn.Module, tokenizer, name: str = "custom", pretrained: str | None = None, precision: str = "fp32"
    ):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.model.visual.to(memory_format=torch.channels_last)  # convolutions run up to twice as fast
        self.tokenizer = tokenizer
        self.name, self.pretrained, self.precision = name, pretrained, precision
        visual = model.visual
        self.preprocess_cfg = PreprocessCfg(**getattr(visual, "preprocess_cfg", {"size": visual.image_size}))
        self._fingerprint: tuple[Snapshot | None, str] | None = None
        self.eval()

    @classmethod
    def load(
        cls,
        model: str,
        pretrained: str | None = None,
        *,
        name: str | None = None,
        precision: str = "fp32",
        cache_dir: str | None = None,
    ) -> "FrozenCLIP":
        """Load by open_clip's names.

        Args:
            model: a name of open_clip's registry ("ViT-B-16-quickgelu"), "local-dir:FOLDER" or "hf-hub:ORG/NAME".
            pretrained: with a registry name, a tag ("openai") or a checkpoint file (OpenAI's JIT archives included).
            name: what results call it; the model's name if not given.
            precision: open_clip's precision of the weights ("fp32", "fp16", "bf16", ...).
            cache_dir: where downloaded weights are kept; the hub's own cache if not given.

        Raises:
            CoopError: unknown name or tag, weights that do not fit or cannot be had, an activation mismatch.
        """
        open_clip_model, tokenizer = load_model(model, pretrained, precision=precision, cache_dir=cache_dir)
        return cls(open_clip_model, tokenizer, name or model, pretrained, precision)

    def train(self, mode: bool = True) -> "FrozenCLIP":
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @property
    def logit_scale(self) -> Tensor:
        """CLIP's learned log temperature, a scalar; its exp() multiplies the cosine similarities."""
        scale = self.model.logit_scale.reshape(())
        return scale.to(torch.promote_types(scale.dtype, torch.float32))

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the token embeddings."""
        return self.token_embedding.weight.dtype

    @torch.no_grad()
    def encode_image(self, images: Tensor, kind: FeatureKind = "normalized") -> Tensor:
        """Images (B, 3, H, W), preprocessed, to image_features (B, E), L2-normalized, at least float32.

        Args:
            images: on the model's device.
            kind: "normalized", or another `FeatureKind`.

        Raises:
            CoopError: of this backbone's image tower there are no local features ("tokens").
        """
        images = self.as_tower_takes(images)
        if kind == "tokens":
            check_local_features(self)
            return normalize(image_tokens(self.model, images))
        if kind == "last_layer":
            return at_least_float32(into_last_layer(self.model.visual, images))
        features = self.model.encode_image(images)
        return normalize(features) if kind == "normalized" else at_least_float32(features)

    def as_tower_takes(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the dtype and the memory format of the image tower."""
        # Of a half-precision tower some parameters stay in float32; what meets the image decides.
        dtype = next(weight for weight in self.model.visual.parameters() if weight.ndim == 4).dtype
        return images.to(dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def pooled(self, image_features: Tensor, kind: FeatureKind) -> Tensor:
        """The pooled features (N, E), L2-normalized, of image_features of any kind, where these are."""
        if kind == "normalized":
            return image_features
        if kind == "last_layer":
            last = LastLayer(self)
            parts = (last(part.to(self.device)) for part in image_features.split(PART))
            return torch.cat([normalize(part).to(image_features) for part in parts])
        return normalize(image_features) if kind == "raw" else image_features[:, 0]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], normalize: bool = True, cut: bool = False) -> Tensor:
        """Texts (N) to text_features (N, E), at least float32; on the model's device.

        Args:
            texts: the texts.
            normalize: L2-normalize the features.
            cut: cut texts that are longer than the context length, as open_clip does.

        Raises:
            CoopError: a text longer than the context length, unless it may be cut.
        """
        ids = (self.tokenizer(list(texts)) if cut else self.tokenize(texts)).to(self.device)
        features = torch.cat([at_least_float32(self.model.encode_text(chunk)) for chunk in ids.split(TEXT_BATCH)])
        return F.normalize(features, dim=-1) if normalize else features

    def prompt_encoder(
        self, ids: Tensor, slots: Tensor, class_specific: bool = False, *, shard: bool = True, **options
    ) -> nn.Module:
        """An encoder of prompts with learned context vectors: `encoder(ctx, deep=None, normalize=True)` -> (*, K, E).

        The processes of a distributed run share the classes out, if it has started: make it at the first forward.

        Args:
            ids: (K, L) token ids; any id below [EOS]'s where a context vector goes.
            slots: (K, L) index of the context vector at each position, -1 for a constant token.
            class_specific: whether `ctx` holds a context for each class, (*, K, M, D), instead of one, (*, M, D).
            shard: False if contexts are not the same on every process, such as one for each of its own images.
            **options: `checkpoint` and `class_chunk` of `coop.clip.text.encoder.PromptEncoder`, whose `forward` says
                more of the call.

        Raises:
            CoopError: see there.
        """
        encoder = ShardedPromptEncoder if shard and is_distributed() else PromptEncoder
        return encoder(self.model, ids, slots, class_specific, **options)

    @property
    def text_layers(self) -> int:
        """How many layers the text encoder has, in front of which deep prompts can be put.

        Raises:
            CoopError: the text encoder is not built of open_clip's residual blocks.
        """
        return len(text_blocks(self.model))

    @property
    def token_embedding(self) -> nn.Module:
        """The text tower's embedding of token ids."""
        return token_embedding(self.model)

    @property
    def embed_dim(self) -> int:
        """E, the width of image and text features."""
        text = getattr(self.model, "text", self.model)
        projection = getattr(text, "text_projection", None)
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return getattr(text, "output_dim", self.text_width) if projection is None else projection.shape[1]

    @property
    def text_width(self) -> int:
        """D, the width of token embeddings."""
        return self.token_embedding.weight.shape[1]

    @property
    def context_length(self) -> int:
        """The number of tokens a prompt may have, special tokens included."""
        return self.tokenizer.context_length

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with its special tokens, neither padded nor cut."""
        # A token has at least one byte: nothing is cut before we can complain about it.
        enough = 8 + 2 * max((len(text.encode()) for text in texts), default=0)
        ids = self.tokenizer(list(texts), context_length=enough)
        lengths = (ids != self.pad_id).long().mul(torch.arange(1, ids.shape[1] + 1)).amax(dim=1)
        return [row[:length].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L), padded to the context length.

        Raises:
            CoopError: a text that does not fit (open_clip would silently cut it).
        """
        rows = self.token_ids(texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.context_length:
                raise CoopError(
                    f'"{text}" has {len(row)} tokens; the text tower of {self.name} takes {self.context_length}'
                )
        return self.pad(rows)

    def pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of token ids to one tensor (N, L), padded to the context length as the tokenizer pads."""
        ids = torch.full((len(rows), self.context_length), self.pad_id, dtype=torch.long)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        return ids

    @property
    def pad_id(self) -> int:
        """The id that the tokenizer pads with."""
        hf_tokenizer = getattr(self.tokenizer, "tokenizer", None)
        return getattr(hf_tokenizer, "pad_token_id", None) or 0

    def release_image_tower(self) -> None:
        """Free the image tower's memory, where all image features are there already; the fingerprint stays."""
        self._fingerprint = None, self.fingerprint()  # a snapshot would hold on to the memory
        self.model.visual = None

    def fingerprint(self) -> str:
        """SHA-256 of architecture, weights and preprocessing: equal fingerprints give equal features.

        Computed again where `Snapshot` sees that the model has changed.
        """
        if self._fingerprint is None or not (self.model.visual is None or self._fingerprint[0].holds()):
            self._fingerprint = Snapshot(self._whole), _fingerprint(self.model, self.preprocess_cfg)
        return self._fingerprint[1]

    def _whole(self) -> Parts:
        return [self.model], []


def _fingerprint(model: nn.Module, preprocess_cfg: PreprocessCfg) -> str:
    digest = hashlib.sha256(repr(preprocess_cfg).encode())
    for name, module in model.named_modules():  # activations and numbers of heads are no weights
        digest.update(f"{name} {type(module).__name__} {getattr(module, 'num_heads', None)}".encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def normalize(features: Tensor) -> Tensor:
    """L2-normalize (N, E) features; half precision is raised to float32 first."""
    return F.normalize(at_least_float32(features), dim=-1)


def at_least_float32(features: Tensor) -> Tensor:
    """Half precision raised to float32."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
