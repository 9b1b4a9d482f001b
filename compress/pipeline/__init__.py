"""The jobs behind the commands: the only place that knows the order of the stages."""
