"""From records to batches: sources, decoding, the join, negatives, micro-batching."""
