"""One script per framework, run in that framework's own environment."""
