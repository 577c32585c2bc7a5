"""The passes of FlattenQuant as this project defines it.

Small functions over arrays, or over the constants of a graph; no files.

smooth    moves range between a channel and its weights, and finds where the graph allows that
flatten   one step for a whole activation tensor: large channels become several columns
grid      one step for weight rows: large weights become a sparse excess
gptq      rounds weights so that the errors of a row cancel on the calibration inputs
split     several intermediate channels for one of enormous weights
bits      which layers keep 8 bits
"""
