"""Locks: what a build read, how it was made and what came out, by digests; building it again; bills of materials. ``docs/reproducible.md``"""
