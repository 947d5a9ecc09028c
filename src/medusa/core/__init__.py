"""The method of the paper: heads, trees, acceptance and the engine. Token ids in, token ids out."""
