"""Self-Distillation Fine-Tuning in plain torch and transformers (arXiv 2601.19897)."""
