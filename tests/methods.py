"""What makes a method's published settings quick and small, where only the mechanics count."""

# The small CLIP's image tower has two layers, its text encoder four.
QUICK = {
    "cross_modal": ["method.iterations=20"],
    "cross_modal_adapter": ["method.iterations=20"],
    "cross_modal_partial": ["method.iterations=20"],
    "ivlp": ["method.depth_text=2", "method.depth_vision=2"],
    "maple": ["method.depth=2"],
    "promptsrc_maple": ["method.depth_text=2", "method.depth_vision=2"],
    "promptsrc": ["method.depth_text=2", "method.depth_vision=2"],
    "zero_shot_ensemble": ["method.templates=7"],
    "vpt": ["method.depth_vision=2"],
}


def quick(name: str) -> list[str]:
    """Overrides that choose a method by the name of its config, and train it little."""
    return [f"method={name}", *QUICK.get(name, [])]
