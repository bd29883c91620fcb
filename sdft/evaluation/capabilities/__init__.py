"""Prior capabilities: a model's results on general benchmarks, before and during training.

``suites`` defines the benchmarks, ``harness`` runs them with lm-evaluation-harness,
``in_memory_lm`` answers its requests with the model in training, and ``capability_record`` builds
the record of the results.
"""
