"""The vllm engine: a client of a vLLM server, and how the server is sent the weights."""
