"""Measurements that need a GPU: each kernel beside what torch has, in one run. Tried on Triton's interpreter where there is none."""
