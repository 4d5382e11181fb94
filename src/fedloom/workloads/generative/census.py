"""Measures samples of every member against a client's images: sums and counts, never an image of the client."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.core.records import JsonObject
from fedloom.core.seeds import integer_seed
from fedloom.workloads.generative.classifier import Classifier, features_of
from fedloom.workloads.generative.making import Models
from fedloom.workloads.generative.member import Member
from fedloom.workloads.generative.moments import Moments

_MOST_COMPARED = 2000
"""Images of the client, the first ones, that samples are compared with one by one."""
_MOST_TESTED = 500
"""Held-out images, the first ones, compared with the client's."""
_BATCH = 256
"""Samples made at a time."""


@dataclass(frozen=True, slots=True)
class Images:
    """What samples are compared with, grey levels (n, 1, h, w) each."""

    own: Tensor
    """The client's training images."""
    held_out: Tensor | None
    """Images that nobody trains on; None if there are none."""


def census(model: Models, images: Images, samples: int, pictures: int, seed: int) -> JsonObject:
    """Return sums over a client's images, held-out images, and samples of each member, as JSON.

    Args:
        model: classifier and members, in evaluation mode.
        images: the client's.
        samples: samples of each member.
        pictures: samples of each that are shown, at most.
        seed: of the samples; members have streams of their own.
    """
    form, classifier = model.classifier.form, model.classifier
    found: JsonObject = {
        "form": [form.height, form.width, form.levels],
        "classes": form.classes,
        "own": _moments(classifier, images.own),
        "members": {},
    }
    if images.held_out is not None and len(images.held_out):
        found["held_out"] = _moments(classifier, images.held_out)
        found["test_distance"] = _nearest(images.held_out[:_MOST_TESTED], images.own, form.levels)
    for name, member in model.members.items():
        found["members"][name] = _of_member(
            member, classifier, images.own, (samples, pictures), integer_seed(seed, name)
        )
    return found


def _of_member(
    member: Member, classifier: Classifier, own: Tensor, counts: tuple[int, int], seed: int
) -> Mapping[str, object]:
    samples, pictures = counts
    generator = torch.Generator(own.device).manual_seed(seed)
    begin = time.perf_counter()
    parts = [member.sample(min(_BATCH, samples - at), generator) for at in range(0, samples, _BATCH)]
    seconds, x = time.perf_counter() - begin, torch.cat(parts)
    features, shares = features_of(classifier, x)
    logs = shares.clamp_min(1e-300).log()
    return {
        "moments": Moments.of(features.cpu().numpy()).to_json(),
        "predicted": torch.bincount(shares.argmax(1), minlength=shares.shape[1]).tolist(),
        "shares": shares.sum(0).tolist(),
        "information": float((shares * logs).sum()),
        "distance": _nearest(x, own, member.form.levels),
        "seconds": seconds,
        "parameters": sum(each.numel() for each in member.parameters()),
        "pictures": base64.b64encode(bytes(x[:pictures].flatten().to(torch.uint8).cpu().tolist())).decode(),
    }


def _moments(classifier: Classifier, x: Tensor) -> JsonObject:
    return Moments.of(features_of(classifier, x)[0].cpu().numpy()).to_json()


def _nearest(x: Tensor, own: Tensor, levels: int) -> list[float]:
    """Return the sum of images' distances to the nearest of the client's, in units of white, and their number."""
    mine = own[:_MOST_COMPARED].flatten(1).float() / (levels - 1)
    distances = torch.cdist(x.flatten(1).float() / (levels - 1), mine, compute_mode="donot_use_mm_for_euclid_dist")
    total = float(distances.min(1).values.double().sum()) if len(mine) else math.nan
    return [total, float(len(x))]
