"""The one expensive step of every head: features against all prototypes, and the softmax loss of what comes of it.

``fused.py`` scores features against classes, chunk by chunk, with one of the backends that ``backend.py`` selects; ``loss.py``
goes from the targets' scores to the loss. README.md beside this file says why it is built like this.
"""
