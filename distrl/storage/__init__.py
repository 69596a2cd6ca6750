"""A run's copy in a store: written beside the training by a process of its own, and brought back to go on elsewhere.

    STORE/NAME-OF-RUN/    the same files as in the run's directory
        checkpoints/N/    complete when its manifest.json is there, which is written last: objects cannot be renamed

The directory of the run stays where training writes; nothing waits for a store. Only `place` knows pyarrow, and only
processes of their own import it.
"""
