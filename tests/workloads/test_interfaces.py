"""Each workload against its interface: by the type checker, which reads the functions here, and when it is built."""

from __future__ import annotations

import typing
from collections.abc import Callable

import pytest

from fedloom.core import registry
from fedloom.core.protocols import HasActions, HasLogits, KeepsClientState, TrainsGroups, UsesHelpers, Workload
from fedloom.selection.firing_credit.rates import HasFiringRates, HasGroupFiringRates
from fedloom.selection.predicted_credit.measure import HasClassErrors
from fedloom.strategies.flower.workload.workload import AppShard, FlowerWorkload
from fedloom.strategies.mano.workload.workload import Scoring
from fedloom.strategies.meat.workload.workload import AdversarialTraining
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads.causal_lm.workload import CausalLM
from fedloom.workloads.geco.workload import VersionClassification
from fedloom.workloads.generative.workload import Generative
from fedloom.workloads.hubert_ee.workload import EarlyExitSpeech
from fedloom.workloads.image_classification.workload import ImageClassification
from fedloom.workloads.llic.workload import LearnedCompression
from fedloom.workloads.mlaan.workload import LocalLearning
from fedloom.workloads.mri_unlearning.workload import MriUnlearning
from fedloom.workloads.retinags.workload import Splatting, ViewShard
from fedloom.workloads.spiking_classification.workload import SpikingClassification
from fedloom.workloads.text_classification.workload import TextClassification
from fedloom.workloads.torch.workload import OwnModel


def image_classification(
    it: ImageClassification,
) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], HasActions]:
    return it, it, it, it


def text_classification(
    it: TextClassification,
) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], HasActions]:
    return it, it, it, it


def causal_lm(it: CausalLM) -> tuple[Workload[RowShard], HasActions]:
    return it, it


def spiking_classification(
    it: SpikingClassification,
) -> tuple[
    Workload[RowShard],
    HasLogits[RowShard],
    TrainsGroups[RowShard],
    HasClassErrors[RowShard],
    HasFiringRates[RowShard],
    HasGroupFiringRates[RowShard],
    HasActions,
]:
    return it, it, it, it, it, it, it


def mano(it: Scoring) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], HasActions]:
    return it, it, it, it


def meat(
    it: AdversarialTraining,
) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], HasActions, KeepsClientState[RowShard]]:
    return it, it, it, it, it


def mlaan(
    it: LocalLearning,
) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], KeepsClientState[RowShard], HasActions]:
    return it, it, it, it, it


def generative(
    it: Generative,
) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], KeepsClientState[RowShard], HasActions]:
    return it, it, it, it, it


def geco(
    it: VersionClassification,
) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], HasActions]:
    return it, it, it, it


def hubert_ee(it: EarlyExitSpeech) -> tuple[Workload[RowShard], HasActions]:
    return it, it


def llic(it: LearnedCompression) -> tuple[Workload[RowShard], HasActions, KeepsClientState[RowShard]]:
    return it, it, it


def mri_unlearning(it: MriUnlearning) -> tuple[Workload[RowShard], HasActions]:
    return it, it


def retinags(it: Splatting) -> tuple[Workload[ViewShard], KeepsClientState[ViewShard], UsesHelpers]:
    return it, it, it


def flower(it: FlowerWorkload) -> tuple[Workload[AppShard], HasActions, KeepsClientState[AppShard]]:
    return it, it, it


def torch(it: OwnModel) -> tuple[Workload[RowShard], HasLogits[RowShard], HasClassErrors[RowShard], HasActions]:
    return it, it, it, it


DECLARED: dict[str, Callable[..., object]] = {
    each.__name__: each
    for each in (
        image_classification,
        text_classification,
        causal_lm,
        spiking_classification,
        mano,
        meat,
        mlaan,
        generative,
        geco,
        hubert_ee,
        llic,
        mri_unlearning,
        retinags,
        flower,
        torch,
    )
}
CAPABILITIES: tuple[type, ...] = (
    HasActions,
    HasLogits,
    KeepsClientState,
    TrainsGroups,
    UsesHelpers,
    HasClassErrors,
    HasFiringRates,
    HasGroupFiringRates,
)


def test_every_installed_workload_is_checked_here() -> None:
    assert sorted(DECLARED) == sorted(registry.names("workloads"))


@pytest.mark.parametrize("name", DECLARED)
def test_a_workload_has_the_capabilities_it_is_checked_for_and_no_others(name: str) -> None:
    hints = typing.get_type_hints(DECLARED[name])
    returned = hints["return"]
    checked = {typing.get_origin(each) or each for each in (returned, *typing.get_args(returned))}
    assert Workload in checked
    assert checked & set(CAPABILITIES) == {each for each in CAPABILITIES if has_members_of(hints["it"], each)}


def has_members_of(workload: type, capability: type) -> bool:
    """Whether the class has all that the protocol declares; one that declares an attribute has that as a class's."""
    names = {name for name in vars(capability) if not name.startswith("_")} | set(capability.__annotations__)
    return all(name in dir(workload) for name in names)
