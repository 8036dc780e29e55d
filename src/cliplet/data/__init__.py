"""From files to batches: records, readers, decoding, transforms, loading. Only `loader` imports torch."""
