"""Embeddings of millions of recordings, in shards that survive kills."""

EMBEDDINGS = ("speech_embedding", "aligned_embedding", "shared_embedding", "intra_class_embeddings")
