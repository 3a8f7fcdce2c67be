"""Methods on the small CLIP, whose image tower has two layers and whose text encoder has four."""

SMALL = {
    "clip_lora": ["steps=null"],
    "ivlp": ["method.depth_text=2", "method.depth_vision=2"],
    "maple": ["method.depth=2"],
    "promptsrc": ["method.depth_text=2", "method.depth_vision=2"],
    "two_stage": ["steps=null"],
    "vpt": ["method.depth_vision=2"],
}


def chosen(name: str) -> list[str]:
    """Overrides that choose a method by the name of its config; how long it is trained, a test says in epochs."""
    return [f"method={name}", *SMALL.get(name, [])]
