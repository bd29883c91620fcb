"""Prior capabilities: what a model could do before, measured on general benchmarks.

:mod:`~sdft.capabilities.suites` says what is measured, :mod:`~sdft.capabilities.harness` hands it
to lm-evaluation-harness, :mod:`~sdft.capabilities.in_memory` answers its requests with a model that
is being trained, and :mod:`~sdft.capabilities.record` keeps what came out.
"""
