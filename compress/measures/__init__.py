"""What a model's outputs are worth: figures by task, the user's own metrics, and which of them decides."""
