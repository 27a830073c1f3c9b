"""Where a lost shard's weights come from: a live replica, the copy in host memory, the checkpoint's byte ranges."""
