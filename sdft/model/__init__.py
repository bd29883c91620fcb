"""Models: loading, adapters, sharding, the output head, the teacher, and how they are laid out."""
