"""A run's folder. The names of what lies in it stand here: they are read without torch."""

RESULTS, PROMPT, CONFIG, CHECKPOINT = "results.json", "prompt.safetensors", "config.yaml", "last.ckpt"
