# SPDX-License-Identifier: Apache-2.0
"""tools/train_former.py: strange pictures, honest teachers, and a net that learns from them."""

from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the trainer is a torch program, torch an extra")

TOOLS = Path(__file__).resolve().parent.parent / "tools"
# float32 sums of at most a few hundred terms of order 1, in another order: some 1e-6 apart
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

LINEAR = """
agraph (float[N, 3, 32, 32] x) => (float[N, 10] logits) {
    pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (x)
    flat = Flatten (pooled)
    logits = MatMul (flat, w)
}
"""


@pytest.fixture(scope="module")
def tool():
    """Return what imports a module of tools/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield import_module


@pytest.fixture(scope="module")
def mixtures(tool):
    return tool("mixtures")


@pytest.fixture(scope="module")
def distillation(tool):
    return tool("distillation")


@pytest.fixture(scope="module")
def trainer(tool):
    return tool("train_former")


@pytest.fixture(autouse=True)
def seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are too small to share out
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pixels():
    """Return smooth coloured pictures, uint8, (N, 32, 32, 3), and labels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (48, 4, 4, 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2), np.arange(48) % 10


@pytest.fixture
def pictures(mixtures, pixels):
    x, y = pixels
    return mixtures.Pictures(mixtures.normalise(x), torch.from_numpy(y))


@pytest.fixture
def teachers(build, distillation, tmp_path):
    """Return two linear classifiers that disagree."""
    paths = []
    for seed in (0, 1):
        weights = np.random.default_rng(seed).normal(0, 0.4, (48, 10)).astype(np.float32)
        paths.append(tmp_path / f"{seed}_cifar10.onnx")
        onnx.save(build(LINEAR, w=weights), paths[-1])
    return distillation.Teachers(paths, 1)


def test_normalises_as_the_teachers_read(mixtures):
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    pixels[0, 2, 5] = (255, 0, 51)
    x = mixtures.normalise(pixels)
    assert x.shape == (1, 3, 32, 32)
    want = torch.tensor([(1 - 0.4914) / 0.2470, -0.4822 / 0.2435, (0.2 - 0.4465) / 0.2616])
    torch.testing.assert_close(x[0, :, 2, 5], want, **CLOSE)


def test_reads_an_archive_and_refuses_another(mixtures, pixels, tmp_path):
    x, y = pixels
    np.savez(tmp_path / "good.npz", x=x, y=y)
    read = mixtures.read(tmp_path / "good.npz")
    torch.testing.assert_close(read.x, mixtures.normalise(x), rtol=0, atol=0)
    assert read.y.tolist() == y.tolist()
    np.savez(tmp_path / "nameless.npz", x=x)
    with pytest.raises(SystemExit, match="has no array y"):
        mixtures.read(tmp_path / "nameless.npz")
    np.savez(tmp_path / "float.npz", x=x / 255, y=y)
    with pytest.raises(SystemExit, match="not uint8"):
        mixtures.read(tmp_path / "float.npz")


def test_crops_come_without_labels(mixtures, trainer):
    parts = [
        mixtures.crops(trainer.PHOTOGRAPHS, 60, np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    assert parts[0].x.shape == (60, 3, 32, 32)
    assert set(parts[0].y.tolist()) == {mixtures.UNKNOWN}
    torch.testing.assert_close(parts[0].x, parts[1].x, rtol=0, atol=0)
    assert (parts[0].x != parts[2].x).any()


def test_no_photographs_is_an_error(mixtures, tmp_path):
    with pytest.raises(SystemExit, match="jpg in"):
        mixtures.crops(tmp_path, 1, np.random.default_rng(0))


def test_reframing_of_nothing_keeps_the_picture(mixtures, pictures, monkeypatch):
    for name, value in {"SMALLEST_AREA": 1, "STRETCH": 1, "ANGLE": 0}.items():
        monkeypatch.setattr(mixtures, name, value)
    same = mixtures.reframe(pictures.x)
    # every weight of the interpolation is 0 or 1 up to the rounding of places near 32: some 1e-5
    kept, turned = (
        torch.isclose(same, x, atol=1e-3).flatten(1).all(1)
        for x in (pictures.x, pictures.x.flip(3))
    )
    assert (kept ^ turned).all()
    assert 0 < turned.sum() < len(turned)


def test_a_window_covers_its_share(mixtures):
    share = torch.linspace(0, 1, 4000)
    masks = mixtures.windows(share)
    assert masks.shape == (4000, 1, 32, 32)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    covered = masks.mean((1, 2, 3))
    # a side of s pixels covers s places or s + 1: at most 2 s + 1 of 1024 too many
    assert (covered - share).max() < (2 * 32 + 1) / 1024
    # a centre on the rim loses up to three quarters, one at random a quarter or so of the whole
    assert 0.4 < covered[share > 0.9].mean() < 0.8


@pytest.mark.parametrize("cut", [0.0, 1.0], ids=["mixup", "cutmix"])
def test_mixtures_lie_between_two_pictures(mixtures, pictures, cut, monkeypatch):
    monkeypatch.setattr(mixtures, "CUT", cut)
    count = len(pictures.y)
    flat = mixtures.Pictures(
        torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32), pictures.y
    )
    mixed = mixtures.mix(flat)
    values = [picture.unique().numel() for picture in mixed.x]
    assert max(values) == (2 if cut else 1)  # two pictures side by side, or one haze
    assert 0 <= mixed.x.min() < mixed.x.max() <= count - 1
    alone = mixed.y != mixtures.UNKNOWN
    assert 0 < alone.sum() < count
    torch.testing.assert_close(mixed.x[alone], flat.x[alone], rtol=0, atol=0)
    assert mixed.y[alone].tolist() == pictures.y[alone].tolist()
    assert (mixed.x != flat.x).flatten(1).any(1).sum() > count / 2


def test_draws_from_every_source(mixtures, pictures):
    strange = mixtures.Pictures(pictures.x, torch.full_like(pictures.y, mixtures.UNKNOWN))
    drawn = mixtures.draw([(pictures, 300), (strange, 200)])
    assert drawn.x.shape == (500, 3, 32, 32)
    assert drawn.x.isfinite().all()
    named = drawn.y != mixtures.UNKNOWN
    # two fifths of the 300 with labels stay alone: 120, five standard deviations of 8.5 either way
    assert 77 < named[:300].sum() < 163
    assert not named[300:].any()
    assert mixtures.draw([(pictures, 5), (strange, 0)]).x.shape == (5, 3, 32, 32)


def test_teachers_answer_with_their_mean(distillation, teachers, pictures):
    answers = teachers.answer(pictures.x, 2.0)
    pooled = torch.nn.functional.avg_pool2d(pictures.x, 8).flatten(1)
    weights = [np.random.default_rng(seed).normal(0, 0.4, (48, 10)) for seed in (0, 1)]
    each = [(pooled @ torch.from_numpy(w).float() / 2).softmax(1) for w in weights]
    torch.testing.assert_close(answers, (each[0] + each[1]) / 2, **CLOSE)
    assert (each[0] - each[1]).abs().max() > 0.1


def test_divergence_is_least_where_the_answers_are(distillation):
    answers = torch.randn(64, 10).softmax(1)
    logits = (2.0 * answers.log()).requires_grad_()  # the student of temperature 2 who agrees
    agreed = distillation.divergence(logits, answers, 2.0)
    torch.testing.assert_close(agreed, torch.zeros(()), rtol=0, atol=1e-5)
    (slope,) = torch.autograd.grad(agreed, logits)
    assert slope.abs().max() < 1e-6
    assert distillation.divergence(logits + torch.randn(64, 10), answers, 2.0) > 0.1


def test_labels_count_where_there_are_any(distillation, mixtures):
    recipe, logits = distillation.Recipe(label_weight=0.5), torch.randn(4, 10)
    answers = (logits / recipe.temperature).softmax(1)  # so that nothing else counts
    unknown = torch.full((4,), mixtures.UNKNOWN)

    def loss(y):
        pictures = mixtures.Pictures(torch.zeros(4, 3, 32, 32), y)
        return distillation.loss_of(logits, distillation.Lesson(pictures, answers), recipe)

    torch.testing.assert_close(loss(unknown), torch.zeros(()), rtol=0, atol=1e-5)
    some = unknown.clone()
    some[1] = 7
    torch.testing.assert_close(loss(some), -0.5 * logits[1].log_softmax(0)[7], **CLOSE)


def test_rate_rises_then_falls_to_nothing(distillation):
    recipe = distillation.Recipe()
    rates = [distillation.rate_at(share, recipe) for share in np.linspace(0, 1, 201)]
    top = rates.index(max(rates))
    assert rates[0] == 0
    assert rates[top] == pytest.approx(recipe.rate)
    assert top / 200 == pytest.approx(recipe.warm_up)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert distillation.rate_at(1.2, recipe) == pytest.approx(0, abs=1e-12)


def test_clock_counts_steps_or_minutes(distillation, monkeypatch):
    now = 100.0
    monkeypatch.setattr(distillation.time, "monotonic", lambda: now)
    steps = distillation.Clock(steps=8, minutes=1)
    minutes = distillation.Clock(minutes=2)
    now += 30
    assert steps.share(2) == 0.25
    assert minutes.share(2) == 0.25


def test_quick_net_is_the_same_net(tool, trainer, pictures):
    plain = trainer.build().eval()
    tool("zoo_models").randomise(plain)
    quick = trainer.quicken(trainer.deepcopy(plain))
    assert list(quick.state_dict()) == list(plain.state_dict())
    names = [type(module).__name__ for module in quick.modules()]
    assert "QuickReLU" in names
    assert "DynamicReLU" not in names
    want, got = (net(pictures.x[:8]).square().mean() for net in (plain, quick))
    torch.testing.assert_close(got, want, **CLOSE)
    want.backward()
    got.backward()
    for (name, one), two in zip(plain.named_parameters(), quick.parameters(), strict=True):
        # gradients are summed over 8 pictures of up to 1,024 places; their order is free
        scale = float(one.grad.abs().max())
        assert float((one.grad - two.grad).abs().max()) <= 1e-3 * scale + 1e-6, name


def test_net_is_small_and_keeps_the_picture(trainer):
    net = trainer.build().eval()
    assert 0.2e6 < sum(p.numel() for p in net.parameters()) < 0.6e6
    assert net.stem(torch.zeros(1, 3, 32, 32)).shape[2:] == (32, 32)
    assert net(torch.zeros(3, 3, 32, 32)).shape == (3, 10)


@pytest.mark.parametrize(("step", "part"), [(0, 1), (90, 0.1), (10**6, 1 / 500)])
def test_average_forgets_its_start_and_then_follows_slowly(distillation, step, part):
    average, model = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    model.weight.data += 1
    model.num_batches_tracked += 7
    distillation.follow(average, model, step)
    torch.testing.assert_close(average.weight.data, torch.full((2,), 1.0 + part))
    assert average.num_batches_tracked == 7


@pytest.fixture
def cifar(build, pixels, tmp_path):
    """Return a folder of teachers and pictures, laid out as the trainer wants it."""
    for folder in ("models", "data"):
        (tmp_path / folder).mkdir()
    for seed in (0, 1):
        weights = np.random.default_rng(seed).normal(0, 0.4, (48, 10)).astype(np.float32)
        onnx.save(build(LINEAR, w=weights), tmp_path / "models" / f"{seed}_cifar10.onnx")
    for part in ("calib", "eval"):
        np.savez(tmp_path / "data" / f"cifar10_{part}.npz", x=pixels[0], y=pixels[1])
    return tmp_path


@pytest.fixture
def small_run(tool, trainer, distillation, monkeypatch):
    """Make a run that takes seconds: a narrow net, few pictures."""
    sizes = tool("mobile_former_sizes")
    config = sizes.Config(
        stem=8, lite=sizes.Block(8, 2, 2), blocks=(sizes.Block(16, 2, 2), sizes.Block(16, 2, 1)),
        tokens=2, token_width=16, hidden=32,
    )  # fmt: skip
    recipe = distillation.Recipe(batch=32, batches=4, repeats=4)
    monkeypatch.setattr(trainer, "build", lambda make=trainer.build: make(config))
    monkeypatch.setattr(trainer, "Recipe", lambda: recipe)
    monkeypatch.setattr(trainer, "CROPS", 64)


def run(trainer, cifar, *options):
    out = cifar / "former.onnx"
    trainer.main(["--cifar", str(cifar), "--out", str(out), *options])
    return out


@pytest.mark.usefixtures("small_run")
def test_learns_what_the_teachers_say_and_writes_it(trainer, distillation, mixtures, cifar, capsys):
    out = run(trainer, cifar, "--epochs", "20")
    said = capsys.readouterr().out
    assert "100%  step 320" in said
    assert "of torch" in said
    teachers = distillation.Teachers(sorted((cifar / "models").iterdir()), 1)
    pictures = mixtures.read(cifar / "data" / "cifar10_eval.npz")
    right, apart = trainer.judge(out, pictures, teachers)
    answers = teachers.answer(pictures.x, 1.0)
    blind = distillation.divergence(
        answers.mean(0, keepdim=True).log().expand(48, 10), answers, 1.0
    )
    assert apart < 0.95 * blind  # who knows the answers but not the pictures is further off
    assert f"top-1 {right:.2%} of 48, {apart:.3f} nats" in said
    model = onnx.load(out)
    onnx.checker.check_model(model)
    assert [item.version for item in model.opset_import if not item.domain] == [17]
    dims = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert dims == [["batch", 3, 32, 32], ["batch", 10]]
    ops = {node.op_type for node in model.graph.node}
    assert {"Softmax", "LayerNormalization", "Max", "HardSigmoid"} <= ops


@pytest.mark.usefixtures("small_run")
def test_the_same_seed_gives_the_same_file(trainer, cifar):
    first, second = (run(trainer, cifar, "--epochs", "1").read_bytes() for _ in range(2))
    assert first == second


@pytest.mark.usefixtures("small_run")
def test_held_pictures_are_not_learnt(trainer, cifar, monkeypatch, capsys):
    seen = []
    train = trainer.train
    monkeypatch.setattr(
        trainer, "train", lambda taught, *rest: seen.append(taught) or train(taught, *rest)
    )
    extra = cifar / "data" / "cifar10_eval.npz"
    run(trainer, cifar, "--epochs", "1", "--hold", "20", "--images", str(extra))
    assert len(seen[0].y) == 28 + 48
    assert "of 20, " in capsys.readouterr().out


@pytest.mark.usefixtures("small_run")
def test_a_file_that_differs_is_refused(trainer, cifar, monkeypatch):
    monkeypatch.setattr(trainer, "difference", lambda *_: (0.1, float("nan")))
    with pytest.raises(SystemExit, match="do not use"):
        run(trainer, cifar, "--epochs", "1")


def test_no_teachers_is_an_error(trainer, tmp_path):
    with pytest.raises(SystemExit, match="no models"):
        run(trainer, tmp_path)
