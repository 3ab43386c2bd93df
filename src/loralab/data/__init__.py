"""From image files and captions to batches: index, buckets, crops, cache, epoch plan."""
