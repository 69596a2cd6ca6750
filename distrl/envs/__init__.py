"""Environments: made by id, cut into shards of copies that can be rebuilt anywhere. No torch, no Ray."""
