"""From logits to text: parameters, sampler, detokenizer, stop strings."""
