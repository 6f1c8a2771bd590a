"""What a user measures: throughput, latency, the curve between them, and perplexity."""
