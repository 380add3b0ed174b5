"""The one expensive step of every head: ``fused.py`` scores features against all prototypes, chunk by chunk, with one of the
backends that ``backend.py`` selects; ``loss.py`` goes from the targets' scores to the loss. README.md here says why.
"""
