"""The codebook: k-means, running means, restarts, ranks."""

import pytest
import torch
from torch import distributed, multiprocessing

from softdimo_plugins.tokenizers.codebook import DEAD, Codebook, kmeans, nearest_code


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(n=40, spread=0.05):
    """Points around 8 corners of a cube, shuffled."""
    corners = torch.tensor([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])
    points = corners.repeat(n, 1) + spread * torch.randn(8 * n, 3, generator=seeded(9))
    return points, corners


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_well_separated_clusters(seed):
    points, corners = clusters()
    centers = kmeans(points, 8, seeded(seed))
    distance = torch.cdist(corners, centers)
    assert distance.min(1).values.max() < 0.1
    assert sorted(distance.argmin(1).tolist()) == list(range(8))


@pytest.mark.parametrize("points", [torch.zeros(5, 2), torch.eye(3).repeat(4, 1), torch.full((1, 4), 1e6)])
def test_kmeans_of_fewer_points_than_centers(points):
    centers = kmeans(points, 7, seeded())
    assert centers.shape == (7, points.shape[1])
    torch.testing.assert_close(centers[nearest_code(points, centers)], points)


def test_nearest_code_is_the_nearest():
    points, codes = torch.randn(50, 4, generator=seeded()), torch.randn(20, 4, generator=seeded(1))
    assert torch.equal(nearest_code(points, codes), torch.cdist(points, codes).argmin(1))


def test_running_means_follow_the_points():
    points, corners = clusters()
    book = Codebook(8, 3)
    book.start(points, seeded())
    moved = points + torch.tensor([0.3, 0.0, 0.0])
    for _ in range(300):
        book.update(moved, book(moved), seeded())
    assert torch.cdist(corners + torch.tensor([0.3, 0, 0]), book.codes).min(1).values.max() < 0.05
    torch.testing.assert_close(book.usage, torch.full((8,), 1 / 8), rtol=0.02, atol=0)


def test_dead_codes_restart_where_the_error_is():
    points, _ = clusters()
    book = Codebook(8, 3)
    book.start(points, seeded())
    book.codes[1:] = 50 + torch.arange(7.0)[:, None]  # no point is near them
    book.means.copy_(book.codes / 8)
    rng = seeded()
    for _ in range(1500):
        book.update(points, book(points), rng)
    assert len(book(points).unique()) == 8
    assert (points - book.codes[book(points)]).square().sum(1).mean() < 0.15  # 0.75 with one code
    assert (book.usage > DEAD / 8).all()


def test_usage_does_not_depend_on_the_batch_size():
    points, _ = clusters()
    small, large = Codebook(8, 3), Codebook(8, 3)
    for book, data in ((small, points), (large, points.repeat(10, 1))):
        book.codes.copy_(clusters()[1])
        for _ in range(20):
            book.update(data, book(data), seeded())
    torch.testing.assert_close(small.codes, large.codes)
    torch.testing.assert_close(small.usage, large.usage)


def test_everything_learned_is_in_the_state():
    points, _ = clusters()
    book, twin = Codebook(8, 3), Codebook(8, 3)
    book.start(points, seeded())
    book.update(points, book(points), seeded(3))
    twin.load_state_dict(book.state_dict())
    for b in book, twin:
        b.update(points, b(points), seeded(4))
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in book.state_dict().items())
    assert list(book.parameters()) == []


def rank(index, address, out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{address}", rank=index, world_size=2)
    points, _ = clusters()
    torch.manual_seed(index)
    book = Codebook(8, 3)
    book.start(points[index::2], seeded(index))
    for _ in range(3):
        book.update(points[index::2], book(points[index::2]), seeded(index))
    torch.save(book.state_dict(), f"{out}/{index}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_keep_one_codebook(tmp_path):
    multiprocessing.spawn(rank, (tmp_path / "store", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert first["started"]
