import json
import subprocess
import sys

import numpy as np
import pytest

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.workloads._data.partition import Partition, partition
from fedloom.workloads._data.partition_settings import (
    Dirichlet,
    Iid,
    LongTailed,
    Natural,
    PartitionSettings,
    Pathological,
    Shards,
    SizeSkew,
)

LABELS = np.arange(1200) % 4
SCHEMES: list[PartitionSettings] = [
    Iid(),
    Dirichlet(alpha=1.0),
    Pathological(classes_per_client=2),
    Shards(shards_per_client=2),
    SizeSkew(growth="linear"),
    SizeSkew(growth="square"),
    SizeSkew(growth="exponential"),
]


def deal(settings: PartitionSettings, clients: int = 8, seed: int = 3, labels: Array = LABELS) -> Partition:
    digest = f"{labels.tobytes().hex()[:64]}:{len(labels)}"
    return partition(settings, labels, None, clients=clients, seed=seed, data_sha256=digest)


@pytest.mark.parametrize("settings", SCHEMES, ids=lambda s: f"{s.scheme}-{getattr(s, 'growth', '')}")
def test_every_example_goes_to_exactly_one_client(settings: PartitionSettings) -> None:
    clients = 6 if isinstance(settings, SizeSkew) and settings.growth == "exponential" else 8
    dealt = deal(settings, clients)
    assert sorted(dealt.rows.tolist()) == list(range(len(LABELS)))
    assert dealt.clients == clients and dealt.sizes.min() >= 1
    assert dealt.sizes.tolist() == [len(dealt.client(k)) for k in range(clients)]


@pytest.mark.parametrize("settings", SCHEMES[:4], ids=lambda s: s.scheme)
def test_the_seed_decides(settings: PartitionSettings) -> None:
    first, other = deal(settings, seed=3), deal(settings, seed=4)
    assert first.rows.tolist() == deal(settings, seed=3).rows.tolist()
    assert first.rows.tolist() != other.rows.tolist()


def test_another_process_with_an_empty_cache_deals_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    code = (
        "import json, numpy as np\n"
        "from fedloom.workloads._data.partition import partition\n"
        "from fedloom.workloads._data.partition_settings import Dirichlet\n"
        "p = partition(Dirichlet(alpha=1.0), np.arange(1200) % 4, None, clients=8, seed=3, data_sha256='q')\n"
        "print(json.dumps([p.rows.tolist(), p.offsets.tolist()]))"
    )
    folder = str(tmp_path_factory.mktemp("empty"))
    environment = {"FEDLOOM_CACHE": folder, "PATH": "", "HOME": folder}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    rows, offsets = json.loads(ran.stdout)
    here = deal(Dirichlet(alpha=1.0))
    assert rows == here.rows.tolist() and offsets == here.offsets.tolist()


def test_label_counts_count() -> None:
    dealt = deal(Dirichlet(alpha=0.5))
    counts = dealt.label_counts(LABELS, 4)
    for client in range(dealt.clients):
        assert counts[client].tolist() == [int((LABELS[dealt.client(client)] == k).sum()) for k in range(4)]


def test_pathological_clients_hold_so_many_classes() -> None:
    counts = deal(Pathological(classes_per_client=2)).label_counts(LABELS, 4)
    assert ((counts > 0).sum(1) == 2).all()


def test_shards_are_pure_where_classes_are_multiples_of_shards() -> None:
    counts = deal(Shards(shards_per_client=1)).label_counts(LABELS, 4)  # 8 shards of 150, 300 of each class
    assert ((counts == 150).sum(1) == 1).all() and ((counts == 0).sum(1) == 3).all()


def test_sizes_grow_linearly_and_classes_stay_mixed() -> None:
    dealt = deal(SizeSkew(growth="linear"))
    assert dealt.sizes.tolist() == [int(1200 * i / 36) for i in range(1, 8)] + [dealt.sizes[-1]]
    assert (dealt.label_counts(np.sort(LABELS), 4)[1:] > 0).all()


def test_alpha_orders_the_skew() -> None:
    def spread(alpha: float) -> float:
        return float(deal(Dirichlet(alpha=alpha)).label_counts(LABELS, 4).std())

    assert spread(0.1) > spread(1.0) > spread(100.0)


def test_ten_thousand_clients_are_dealt_by_flower_as_quickly_as_they_are_drawn() -> None:
    labels = np.arange(60_000) % 10
    for settings in (Iid(), Shards(shards_per_client=2)):
        assert deal(settings, clients=10_000, labels=labels).sizes.tolist() == [6] * 10_000


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "shards", "linear"])
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # of datasets' own sort
def test_the_row_table_answers_as_a_real_data_set_does(name: str) -> None:
    import datasets
    from flwr_datasets import partitioner as flower

    from fedloom.workloads._data.row_table import RowTable

    def make() -> flower.Partitioner:
        return {
            "dirichlet": lambda: flower.DirichletPartitioner(8, "label", 1.0, min_partition_size=0, seed=5),
            "pathological": lambda: flower.PathologicalPartitioner(8, "label", 2, "first-deterministic", seed=5),
            "shards": lambda: flower.ShardPartitioner(8, "label", num_shards_per_partition=2, seed=5),
            "linear": lambda: flower.LinearPartitioner(8),
        }[name]()

    rows = np.random.Generator(np.random.PCG64(1)).permutation(1200)
    ours, real = make(), make()
    ours.dataset = RowTable(LABELS, rows)
    real.dataset = datasets.Dataset.from_dict({"label": LABELS[rows].tolist(), "row": rows.tolist()})
    for client in range(8):
        here, there = ours.load_partition(client), real.load_partition(client)
        if name == "shards":  # rows of one label may come in another order from its sort
            assert sorted(LABELS[here].tolist()) == sorted(there["label"])
        else:
            assert here.tolist() == list(there["row"])


@pytest.mark.parametrize(
    ("settings", "clients", "words"),
    [
        (Iid(), 1201, "client 1200 would have none"),
        (Dirichlet(alpha=0.001), 100, "min_size = 1; in the last draw client"),
        (Pathological(classes_per_client=5), 8, "classes_per_client"),
        (Shards(shards_per_client=200), 8, "shards_per_client"),
        (SizeSkew(growth="exponential"), 100, "size_skew"),
        (Natural(), 8, "group column"),
    ],
    ids=lambda value: getattr(value, "scheme", None),
)
def test_a_client_without_examples_is_an_error_with_a_remedy(
    settings: PartitionSettings, clients: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        deal(settings, clients)
    assert any(word in str(caught.value) for word in ("clients", "iid", "Set "))


def test_natural_gives_each_group_to_one_client() -> None:
    groups = np.array([5, 5, 9, 7, 9, 7, 7])
    dealt = partition(Natural(), np.zeros(7, np.int64), groups, clients=2, seed=1, data_sha256="natural")
    assert [dealt.client(k).tolist() for k in range(2)] == [[0, 1, 2, 4], [3, 5, 6]]  # groups 5 and 9; group 7
    with pytest.raises(ConfigError, match="finds 3 groups"):
        partition(Natural(), np.zeros(7, np.int64), groups, clients=4, seed=1, data_sha256="natural")


def test_a_long_tail_thins_classes_exponentially() -> None:
    """300 of each of 4 classes, imbalance 8: 300, 300 / 2, 300 / 4 and 300 / 8 are left, in an order the seed draws."""
    dealt = deal(LongTailed(imbalance=8.0, alpha=5.0))
    left = np.bincount(LABELS[dealt.rows], minlength=4)
    assert sorted(left.tolist(), reverse=True) == [300, 150, 75, 38]
    assert len(set(dealt.rows.tolist())) == len(dealt.rows)
    orders = {tuple(np.bincount(LABELS[deal(LongTailed(imbalance=8.0), seed=s).rows]).argsort()) for s in range(6)}
    assert len(orders) > 1


def test_a_long_tail_of_one_is_dirichlet() -> None:
    even, plain = deal(LongTailed(imbalance=1.0, alpha=0.5)), deal(Dirichlet(alpha=0.5))
    assert even.rows.tolist() == plain.rows.tolist() and even.offsets.tolist() == plain.offsets.tolist()
    with pytest.raises(ValueError, match="imbalance"):
        LongTailed(imbalance=0.5)


def test_a_tail_too_thin_for_the_clients_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot partition 33 examples among 60 clients"):
        deal(LongTailed(imbalance=1e6, alpha=0.05), labels=np.arange(120) % 4, clients=60)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("kind", [Dirichlet, LongTailed])
def test_empty_clients_stay_or_are_filled_from_the_largest(kind: type[Dirichlet], alpha: float) -> None:
    """`allow` is the first draw as it is; `move` takes what is missing from whoever has most, one row at a time."""
    drawn = deal(kind(alpha=alpha, empty="allow"), clients=40)
    assert drawn.sizes.min() == 0
    expected = [drawn.client(client).tolist() for client in range(40)]
    for client, rows in enumerate(expected):
        while len(rows) < 3 and len(drawn.client(client)) < 3:
            largest = max(expected, key=len)  # the first of them
            rows.append(largest.pop())
    moved = deal(kind(alpha=alpha, empty="move", min_size=3), clients=40)
    assert [moved.client(client).tolist() for client in range(40)] == expected
    assert sorted(moved.rows.tolist()) == sorted(drawn.rows.tolist()) and moved.sizes.min() == 3


def test_a_draw_without_empty_clients_is_the_same_by_all_three() -> None:
    first, *others = (deal(Dirichlet(alpha=5.0, empty=empty)) for empty in ("redraw", "move", "allow"))
    for other in others:
        assert other.rows.tolist() == first.rows.tolist() and other.offsets.tolist() == first.offsets.tolist()


def test_more_cannot_be_moved_than_there_is() -> None:
    with pytest.raises(ConfigError, match="8 clients with at least 151 examples each need 1208, there are 1200"):
        deal(Dirichlet(alpha=0.1, empty="move", min_size=151))
    with pytest.raises(ConfigError, match="min_size: expected 1, since empty = 'allow' ignores it, got 2"):
        Dirichlet(empty="allow", min_size=2)
