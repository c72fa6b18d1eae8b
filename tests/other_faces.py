"""Rendered faces as data sets of which less is known: action units alone in `split="aus"`, else emotions alone, with
compound labels."""

import dataclasses

from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.data.datasets import synth_faces
from actfer_jax.data.sources import DataConfig as Config

__all__ = ["Config", "labels", "open_source"]

COMPOUND = ("Happily Surprised", "Sadly Fearful")


def labels(config: Config) -> tuple[str, ...]:
    return () if config.split == "aus" else COMPOUND


def open_source(config: Config) -> "Faces":
    return Faces(config)


class Faces:
    def __init__(self, config: Config):
        self.config = config

    def __len__(self) -> int:
        return self.config.size or 4

    def strata(self, index: int) -> tuple[str, ...]:
        return ()

    def __getitem__(self, index: int) -> Sample:
        spec = synth_faces.face_of("validation", index)
        reference = Reference(labels(self.config), aus=frozenset(spec.aus))
        if self.config.split != "aus":
            reference = dataclasses.replace(reference, aus=None, emotion=COMPOUND[index % 2])
        return Sample("other_faces", str(index), (synth_faces.render(spec).image,), reference)
