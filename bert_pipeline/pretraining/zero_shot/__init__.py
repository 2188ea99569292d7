"""What a masked LM knows without fine-tuning: pseudo-likelihood, minimal pairs, cloze probes."""
