"""The companion: base training, fine-tuning and distillation."""
