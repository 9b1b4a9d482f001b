"""One set of measurements, as a table, Markdown, JSON and HTML."""
