"""Until the packed encoder takes several contexts and deep prompts: the same call, prompt by prompt, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.text import plain_text_features, prompt_embeddings


class PlainEncoder(nn.Module):
    def __init__(self, model, ids, slots, class_specific=False, *, shard=True, checkpoint=False, class_chunk=None):
        super().__init__()
        self.model, self.ids, self.slots, self.class_specific = (model,), ids, slots, class_specific

    def forward(self, ctx: Tensor, deep=None, normalize: bool = True) -> Tensor:
        (model,), own, deep = self.model, 3 if self.class_specific else 2, deep or {}
        blocks = getattr(model, "text", model).transformer.resblocks
        slots = self.slots.to(ctx.device)

        def hook(vectors):
            def put_in(module, args):
                x = args[0]
                v = vectors.to(x).expand(len(x), -1, -1)
                at = (slots >= 0) & (slots < v.shape[1])
                y = v.gather(1, slots.clamp(0, v.shape[1] - 1)[:, :, None].expand(-1, -1, v.shape[-1]))
                return torch.where(at[:, :, None], y, x), *args[1:]

            return put_in

        hooks = [blocks[layer].register_forward_pre_hook(hook(vectors)) for layer, vectors in deep.items()]
        found = [
            plain_text_features(model, self.ids, prompt_embeddings(model, self.ids, self.slots, one)).to(ctx.dtype)
            for one in ctx.reshape(-1, *ctx.shape[-own:])
        ]
        for handle in hooks:
            handle.remove()
        features = torch.stack(found)
        features = F.normalize(features, dim=-1) if normalize else features
        return features.reshape(*ctx.shape[:-own], *features.shape[1:])
