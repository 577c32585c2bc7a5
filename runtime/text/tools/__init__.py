"""Calls of tools in what a model writes, by template family: put, read as they come, held to a schema"""
