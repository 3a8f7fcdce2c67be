"""What makes a method's published settings quick, where only the mechanics count."""

QUICK = {name: ["method.iterations=20"] for name in ("cross_modal", "cross_modal_adapter")}


def quick(name: str) -> list[str]:
    """Overrides that choose a method and train it little."""
    return [f"method={name}", *QUICK.get(name, [])]
