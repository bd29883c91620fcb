"""Prior capabilities: what a model could do before, measured on general benchmarks.

``suites`` says what is measured, ``harness`` hands it to lm-evaluation-harness, ``in_memory_lm``
answers its requests with the model in training, and ``capability_record`` holds the results.
"""
