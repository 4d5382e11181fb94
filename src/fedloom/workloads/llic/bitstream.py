"""Images to compressed files and back, by one codec.

Encoder and decoder run the same entropy model on the same tensors, in float64, on one thread, with means on a grid and
integer tables, and only symbols are coded. A checksum of the symbols is in the header: a decoder that would compute
other probabilities finds out, and fails.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.llic.coder import Decoder, Encoder, Models, SymbolCoder
from fedloom.workloads.llic.container import Container, StreamInvalid
from fedloom.workloads.llic.entropy import HYPER_STRIDE
from fedloom.workloads.llic.net import Codec, padded
from fedloom.workloads.llic.pixels import Pixels, pack_alpha, unpack_alpha
from fedloom.workloads.llic.quantising import GRID, LEAST_SCALE, MOST
from fedloom.workloads.llic.tables import Table, gaussian_tables, prior_tables, thresholds
from fedloom.workloads.llic.transforms import STRIDE

_CPU = torch.device("cpu")
_STEP = STRIDE * HYPER_STRIDE


class _Coding:
    """What an entropy model calls while a stream is written or read."""

    def __init__(self, y: Tensor | None, coder: SymbolCoder) -> None:
        self._y, self._coder = y, coder
        self.crc = 0
        self._limits = torch.from_numpy(thresholds())

    def __call__(self, channels: slice, where: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
        places = torch.ones(mean.shape[-2:], dtype=torch.bool) if where is None else where
        mean = (torch.round(mean * GRID) / GRID)[0][:, places]
        indices = torch.bucketize(scale[0][:, places].clamp_min(LEAST_SCALE), self._limits)
        symbols = None
        if self._y is not None:
            offset = self._y[0, channels][:, places].double() - mean
            symbols = torch.round(offset).clamp(-MOST, MOST).long().flatten().numpy()
        coded = self._coder(symbols, indices.flatten().numpy())
        self.crc = zlib.crc32(coded.astype("<i4").tobytes(), self.crc)
        values = scale.new_zeros(scale.shape)
        values[0][:, places] = torch.from_numpy(coded).reshape(mean.shape).double() + mean
        return values


class ImageCodec:
    """Codes images with a trained codec on a CPU. The codec's weights must not change afterwards.

    Args:
        codec: the trained codec; it is set to evaluation mode.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec.eval()
        self._entropy = copy.deepcopy(codec.entropy).double().eval()
        with torch.inference_mode():
            self._medians = self._entropy.prior.medians[:, None, None]
            tables = prior_tables(self._entropy.prior)
        self._gaussian, self._prior = Models(gaussian_tables()), Models(tables)
        self.identity = identity(codec, [*self._gaussian.tables, *tables])
        """16 bytes that a decoder's model must have in common with the encoder's: weights, settings, tables."""

    def encode(self, pixels: Pixels) -> Container:
        """Return an image's compressed form."""
        with exact(_CPU), torch.inference_mode():
            y = self.codec.analysis(padded(as_images(pixels.rgb)))
            z = self.codec.entropy.analysis(y)
            distance = torch.round(z.double() - self._medians).clamp(-MOST, MOST).long()
            hyper, latent = Encoder(self._prior), Encoder(self._gaussian)
            symbols, indices = distance[0].flatten(1).numpy(), self._channels(distance)
            hyper(symbols.flatten(), indices)
            coding = _Coding(y, latent)
            coding.crc = zlib.crc32(symbols.astype("<i4").tobytes())
            self._entropy.run(distance.double() + self._medians, coding)
        height, width = pixels.rgb.shape[:2]
        return Container(
            height=height,
            width=width,
            model=self.identity,
            grey=pixels.grey,
            z=hyper.finish(),
            y=latent.finish(),
            alpha=None if pixels.alpha is None else pack_alpha(pixels.alpha),
            symbols_crc=coding.crc,
        )

    def decode(self, container: Container, where: str = "the stream") -> Pixels:
        """Return the image of a compressed form.

        Raises:
            StreamInvalid: another model has encoded it, or it is damaged.
        """
        self.check(container, where)
        height, width = container.height, container.width
        try:
            alpha = None if container.alpha is None else unpack_alpha(container.alpha, height, width)
            with exact(_CPU), torch.inference_mode():
                decoded = self.codec.synthesis(self._latent(container).float())[:, :, :height, :width]
        except StreamInvalid as exc:
            raise StreamInvalid(f"{where}: {exc}") from exc
        return Pixels(as_pixels(decoded), alpha, container.grey)

    def check(self, container: Container, where: str) -> None:
        """Refuse a stream of another model.

        Raises:
            StreamInvalid: with both identities.
        """
        if container.model != self.identity:
            raise StreamInvalid(
                f"{where}: encoded with the model {container.model.hex()}, but this one is {self.identity.hex()}. "
                "Decode it with the run that has encoded it"
            )

    def _latent(self, container: Container, decoder: type[Decoder] = Decoder) -> Tensor:
        """Return the quantised latent of a stream, (1, M, h, w), float64."""
        rows, columns = (-(-side // _STEP) for side in (container.height, container.width))
        shape = (1, len(self._medians), rows, columns)
        indices = self._channels(torch.zeros(shape))
        symbols = decoder(self._prior, container.z)(None, indices)
        coding = _Coding(None, decoder(self._gaussian, container.y))
        coding.crc = zlib.crc32(symbols.astype("<i4").tobytes())
        latent = self._entropy.run(torch.from_numpy(symbols).reshape(shape).double() + self._medians, coding)
        if coding.crc != container.symbols_crc:
            raise StreamInvalid(
                "the decoded symbols do not have the encoder's checksum: the stream is damaged, or this machine "
                "computes other probabilities than the encoder's"
            )
        return latent

    def latent(self, container: Container, decoder: type[Decoder] = Decoder) -> Tensor:
        """Return the quantised latent that a stream decodes to, (1, M, h, w), float64; `decoder` reads its symbols."""
        with exact(_CPU), torch.inference_mode():
            return self._latent(container, decoder)

    def _channels(self, z: Tensor) -> Array:
        """Return the channel of each value of a hyper-latent, in the order of coding."""
        _, channels, rows, columns = z.shape
        return np.repeat(np.arange(channels), rows * columns)


def identity(codec: Codec, tables: list[Table]) -> bytes:
    """Return 16 bytes of a digest of a codec's settings, weights and tables."""
    config = codec.config
    digest = hashlib.sha256(b"fedloom llic 1")
    settings = {key: getattr(config, key) for key in ("channels", "latent")}
    for part in (config.transform, config.entropy):
        settings |= part.model_dump(mode="json")
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for table in tables:
        digest.update(table.first.to_bytes(8, "little", signed=True) + table.weights.astype("<i8").tobytes())
    return digest.digest()[:16]


def as_images(rgb: Array) -> Tensor:
    """Return pixels (H, W, 3), uint8, as an image (1, 3, H, W) from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float() / 255.0


def as_pixels(image: Tensor) -> Array:
    """Return an image (1, 3, H, W) from 0 to 1 as pixels (H, W, 3), uint8."""
    scaled = torch.round(image.clamp(0.0, 1.0) * 255.0)[0].permute(1, 2, 0)
    return np.ascontiguousarray(scaled.to(torch.uint8).numpy())
