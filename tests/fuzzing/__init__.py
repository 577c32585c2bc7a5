"""A fuzzer of everything that flatlm reads: good files are changed, each case runs in a child with limits"""
