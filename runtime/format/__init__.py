"""What a model file is: the graph, its functions, reading it, the artifact around it."""
