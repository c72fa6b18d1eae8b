"""What a run keeps in its workdir: checkpoints, metrics, manifest, progress."""
