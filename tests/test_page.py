"""The page: what Python packs, and what a browser makes of it.

    PYTHONPATH=. python tests/test_page.py PAGE.html OUT.png [1180 600]

is a screenshot of a page in a window of that size, and tells how long it opens and draws.
"""

import base64
import dataclasses
import json
import re
import shutil
import sys
import time
import zlib

import numpy as np
import pytest

import data
import metrics
import run
import solvers
import sparsedis
from experiments import disentangle, page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

TINY = {"steps": 2, "image_sets": 1, "samples": 12, "tasks_per_set": 2, "eval_images": 60}
RUNS = {  # name: settings
    "lasso": {},
    "ridge": {"head": "inner-ridge", "eps": 0.1, "seed": 1},
    "ten": {"features": 10, "rho": 0.5},
}
FACTORS = np.random.default_rng(0).integers(data.LEVELS, size=(20, 6))


# ------------------------------------------------------------------------------ what is packed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of runs, trained for two steps."""
    home = tmp_path_factory.mktemp("results")
    configs = {
        name: disentangle.Disentangle(results=str(home), **TINY, **own)
        for name, own in RUNS.items()}
    return {name: disentangle.disentangle(own)[1].folder for name, own in configs.items()}


def written(folders, path, *names):
    """The page of some runs, and its content."""
    chosen = [str(folders[name]) for name in names]
    assert run.main(["page", *chosen, "--out", str(path)]) == 0
    return json.loads(re.search(r'id="content">(.*?)</script>', path.read_text(), re.S).group(1))


@pytest.fixture(scope="module")
def two(folders, tmp_path_factory):
    """The path of a page of two runs."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    written(folders, path, "lasso", "ridge")
    return path


def test_a_page_of_two_runs_is_small_and_needs_no_network(two, folders):
    text = two.read_text()
    assert 1e6 < len(text) < 6e6 and "default-src 'none'" in text
    own = re.sub(r'id="content">.*?</script>', "", text, flags=re.S)
    assert re.findall(r'(?:src|href)="([^"]*)"', own) == ["https://arxiv.org/abs/2211.14666"]


def test_the_maps_are_unpacked_as_they_were(two):
    scene = page.pack_scene()
    planes = np.frombuffer(zlib.decompress(base64.b64decode(scene["maps"])), np.uint8)
    levels = planes.reshape(2, -1).T.copy().view("<i2").reshape(5, 8, 4, 15, 4096)
    maps = np.cumsum(np.cumsum(levels, axis=3), axis=1) * scene["step"]
    wanted = np.moveaxis(data.geometry_maps(), -1, 0).reshape(maps.shape)
    assert np.abs(maps - wanted).max() <= 0.51 * scene["step"] < 0.1 / 255


def test_weights_are_rounded_and_features_follow_them(folders):
    trained = page.read_run(folders["lasso"])
    params, _ = page.pack_encoder(trained)
    for name, a in trained.params.items():
        step = np.abs(a).max(axis=tuple(range(a.ndim - 1))) / 127
        assert np.all(np.abs(params[name] - a) <= (0.51 * step if name.endswith(".W") else 0))
    index = np.arange(300) * 1600
    F, told = (page.features_on_page(trained, own, data.Shapes3D(), index)
               for own in (trained.params, params))
    assert np.diag(metrics.correlation(F, told)).min() > 0.995
    dead, scale = page.rounded(np.zeros((3, 2), np.float32))
    assert not dead.any() and np.all(scale == 1)


def test_an_unmixed_run_is_the_same_features_times_a_matrix(folders, monkeypatch):
    monkeypatch.setattr(page, "SEEN", 1000)
    trained = page.read_run(folders["lasso"])
    own = page.unmixed(trained)
    index = np.arange(300) * 1600
    F, rotated = (page.features_on_page(run, run.params, data.Shapes3D(), index)
                  for run in (trained, own))
    _, p = data.latents(data.Shapes3D())
    seen = np.random.default_rng(30_001).choice(480_000, page.SEEN, p=p)
    of_seen = page.features_on_page(trained, trained.params, data.Shapes3D(), seen)
    deviation = page.deviation_of(of_seen)
    wanted = (F - of_seen.mean(axis=0)) / deviation @ own.M
    np.testing.assert_allclose(rotated, wanted, atol=2e-3)
    assert page.title_of(own) == "unmixed"
    assert page.title_of(dataclasses.replace(trained, config=own.config | {"eps": 0.0})) == (
        "no penalty")


def test_features_that_are_constant_are_drawn_and_numbers_that_are_none_are_refused(folders):
    trained, shapes = page.read_run(folders["lasso"]), data.Shapes3D()
    z, p = data.latents(shapes)
    drawn = page.draw_images(shapes, p)
    dead = trained.params["linear2.W"] * (np.arange(6) != 2)
    params = trained.params | {"linear2.W": dead}
    own = page.pack_run(dataclasses.replace(trained, params=params), shapes, z, drawn)
    json.dumps(own, allow_nan=False)
    assert set(own["sign"]) <= {-1.0, 1.0} and own["deviation"][2] == 1
    huge = trained.params | {"linear2.b": np.full(6, np.inf, np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        page.pack_run(dataclasses.replace(trained, params=huge), shapes, z, drawn)


def test_the_links_lead_to_the_functions():
    for name, link in page.code_links("https://SOURCE").items():
        path, line = link.removeprefix("https://SOURCE/").split("#L")
        lines = (page.settings.ROOT / path).read_text().splitlines()
        assert name.rpartition(".")[2] in "".join(lines[int(line) - 1 : int(line) + 1])


@pytest.mark.slow
def test_runs_of_the_same_title_are_told_apart(folders, tmp_path):
    content = written(folders, tmp_path / "p.html", "lasso", "ten", "ridge")
    assert [own["title"] for own in content["runs"]] == ["Lasso (1)", "Lasso (2)", "ridge"]
    assert "correlated at 0.82" in content["told_source"]  # of the first run, realised


def test_features_without_a_factor_come_last(folders, tmp_path):
    (own,) = written(folders, tmp_path / "p.html", "ten")["runs"]
    assert sorted(own["order"]) == list(range(10))
    assert own["factors"] == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1] and own["rows"][9][:5] == "spare"
    C = np.array(own["correlation"])
    assert all(own["sign"][k] in (-1, 1) for k in range(6)) and C.shape == (6, 10)


@pytest.mark.slow
def test_default_runs_are_trained_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "SEEN", 1000)
    assert run.main(["page"]) == 2
    error = capsys.readouterr().err
    assert "--train" in error and "--head inner-ridge --eps 0.1" in error
    tiny = [(name, int, value) for name, value in TINY.items()]
    short = dataclasses.make_dataclass(
        "Disentangle", tiny, bases=(disentangle.Disentangle,), frozen=True)
    monkeypatch.setattr(disentangle, "Disentangle", short)
    assert run.main(["page", "--train"]) == 0
    told = (tmp_path / "results/page.html").read_text()
    assert 1e6 < len(told) < 3e6 and '"title": "unmixed"' in told
    assert run.main(["page"]) == 0  # they are there now


def test_what_is_no_run_of_it_is_refused(folders, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folders["lasso"], other)
    told = json.loads((other / "config.json").read_text()) | {"norm": "layer"}
    (other / "config.json").write_text(json.dumps(told))
    del told["tasks"]
    half = tmp_path / "half"
    shutil.copytree(folders["lasso"], half)
    (half / "config.json").write_text(json.dumps(told | {"norm": "batch"}))
    one = str(folders["lasso"])
    for chosen in ([str(tmp_path)], [str(other)], [str(half)], [one] * 4, [one, "--train"]):
        assert run.main(["page", *chosen, "--out", str(tmp_path / "p.html")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "p.html").exists()


# ------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as found:
            yield found


def opened(browser, path, **options):
    """A tab with a page; its .faults are what it wrote on the console, and its requests."""
    tab = browser.new_page(**options)
    tab.faults, requests = [], []
    tab.on("console", lambda message: tab.faults.append(message.text))
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("body[data-ready]")
    tab.faults += requests[1:]  # the first is the page
    return tab


def wait(tab, condition):
    """Until a condition holds; asked from here, since the page forbids to evaluate texts."""
    for _ in range(1200):
        if tab.evaluate(condition):
            return
        time.sleep(0.05)
    raise AssertionError(condition)


@in_browser
@pytest.mark.parametrize("script", [False, True])
def test_a_browser_that_cannot_unpack_the_page_is_told(browser, two, script):
    tab = browser.new_page(java_script_enabled=script)
    tab.add_init_script("delete window.DecompressionStream")
    tab.goto(two.as_uri())
    told = "DecompressionStream is not defined" if script else "too old"
    tab.wait_for_selector(f"#trouble:has-text('{told}')")


@in_browser
def test_a_constant_feature_has_no_weight(tab):
    rows = np.random.default_rng(0).standard_normal((12, 3)) * [1, 0, 1]
    for solve in ("lasso", "ridge"):
        w = tab.evaluate(f"F => {solve}(F, F.map(f => f[0]), .1)", rows.tolist())
        assert np.isfinite(w).all() and w[1] == 0 and w[0] > 0.5


@pytest.fixture(scope="module")
def tab(browser, two):
    """A tab with the page of two runs."""
    return opened(browser, two)


@in_browser
def test_the_picture_is_that_of_compose(tab):
    geometry = np.ravel_multi_index(FACTORS[:, 3:].T, data.LEVELS[3:])
    wanted = data.compose(geometry, FACTORS[:, :3]).reshape(20, -1)
    found = tab.evaluate("all => all.map(f => [...compose(f)])", FACTORS.tolist())
    away = np.abs(255 * (np.array(found) - wanted))
    assert away.max() < 1.01 and (away < 0.55).mean() > 0.99


@in_browser
def test_features_are_pythons(tab, folders):
    shapes = data.Shapes3D()
    index = np.ravel_multi_index(FACTORS.T, data.LEVELS)
    script = "all => all.map(f => runs.map(run => features(run, compose(f))))"
    found = tab.evaluate(script, FACTORS.tolist())
    for r, name in enumerate(("lasso", "ridge")):
        trained = page.read_run(folders[name])
        F = page.features_on_page(trained, page.pack_encoder(trained)[0], shapes, index)
        told = tab.evaluate(f"(({{order, sign, mean, deviation}}) => "
                            f"[order, sign, mean, deviation])(runs[{r}])")
        order, sign, mean, deviation = map(np.array, told)
        wanted = sign * ((F - mean) / deviation)[:, order]
        # a level of the picture's 256, here and there, is all that may differ
        assert np.abs(np.array([own[r] for own in found]) - wanted).max() < 5e-3


@in_browser
@pytest.mark.parametrize("n, m", [(25, 6), (50, 10), (8, 10)])
def test_fits_are_those_of_the_solvers(tab, n, m):
    rng = np.random.default_rng(n)
    mix = np.linalg.cholesky(0.3 * np.eye(m) + 0.7)
    F, _ = sparsedis.normalise((rng.standard_normal((n, m)) @ mix)[None])
    w = rng.standard_normal(m) * (np.arange(m) % 2)
    y = (F[0] @ w + 0.1 * rng.standard_normal(n))[None]
    for eps in (0.01, 0.1, 0.5):
        args = [F[0].tolist(), y[0].tolist(), eps]
        wanted, _ = solvers.lasso(F, y, eps * solvers.lasso_lambda_max(F, y))
        found = np.array(tab.evaluate("([F, y, eps]) => lasso(F, y, eps)", args))
        assert np.abs(found - wanted[0]).max() < 1e-6
        assert np.array_equal(found != 0, wanted[0] != 0)
        wanted = solvers.ridge(F, y, eps * solvers.ridge_lambda_max(F))
        found = np.array(tab.evaluate("([F, y, eps]) => ridge(F, y, eps)", args))
        assert np.abs(found - wanted[0]).max() < 1e-6


@in_browser
def test_a_task_is_fitted_to_what_it_shows(tab, folders):
    tab.evaluate("find('samples').value = 25; find('eps').value = 2")
    tab.evaluate("task.w = [0, 1.5, 0, 0, -1, 0]; showTask()")
    shown = tab.evaluate("({...sampleTask(), fits: task.fits})")
    z, p = data.latents(data.Shapes3D())
    drawn = page.draw_images(data.Shapes3D(), p)
    ids, y = np.array(shown["ids"]), np.array(shown["y"])
    signal = z[drawn[ids]] @ [0, 1.5, 0, 0, -1, 0]
    assert np.std(y - signal) == pytest.approx(0.1 * np.std(signal), rel=0.1)
    trained = page.read_run(folders["lasso"])
    params, _ = page.pack_encoder(trained)
    F = page.features_on_page(trained, params, data.Shapes3D(), drawn[ids]).astype(float)
    fit, _ = sparsedis.normalise(F[None, :25])
    centred = y[None, :25]
    w, _ = solvers.lasso(fit, centred, 0.01 * solvers.lasso_lambda_max(fit, centred))
    order, sign = (np.array(tab.evaluate(f"runs[0].{name}")) for name in ("order", "sign"))
    assert np.allclose(shown["fits"][0]["w"], sign * w[0, order], atol=1e-4)
    mean, deviation = F[:25].mean(axis=0), np.sqrt(F[:25].var(axis=0) + 1e-5)
    told = (F[-500:] - mean) / deviation @ w[0] + y[:25].mean()
    error = np.mean((y[-500:] - told) ** 2) / np.var(y[-500:])
    assert shown["fits"][0]["error"] == pytest.approx(error, rel=1e-3)


@in_browser
def test_a_slider_moves_its_factor_and_the_picture(tab):
    tab.evaluate("state.factors = [0, 1, 2, 3, 1, 5]; hold(0)")
    pixels = "find('picture').toDataURL()"
    before = tab.evaluate(pixels)
    tab.focus("#factor-3")
    tab.keyboard.press("ArrowRight")
    wait(tab, f"find('value-3').textContent === '{data.SCALES[4]:.2f}'")
    assert tab.evaluate("state.factors") == [0, 1, 2, 4, 1, 5] and tab.evaluate(pixels) != before
    assert tab.get_attribute("#factor-3", "aria-valuetext") == f"{data.SCALES[4]:.2f}"
    box = tab.locator("#factor-0").bounding_box()
    y = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 8, y)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] - 8, y, steps=8)
    tab.mouse.up()
    wait(tab, "find('value-0').textContent === 'pink'")
    assert tab.inner_text("#moved").startswith("You moved floor hue: with Lasso ")
    low, high = tab.evaluate("state.trail[0][0]")
    assert high > low  # where the feature went
    held = tab.eval_on_selector_all(".factor.held label", "all => all.map(e => e.textContent)")
    assert held == ["floor hue"]
    wait(tab, "state.curves.levels.length === 10")  # when idle
    lines = tab.locator("#features .card").first.locator("polyline")
    assert lines.count() == 6
    set_4 = "find('factor-4').value = 2; find('factor-4').dispatchEvent(new Event('input'))"
    tab.evaluate(set_4)  # as a screen reader does, without the focus
    wait(tab, "find('value-4').textContent === 'sphere' && state.held === 4")


@in_browser
def test_buttons_draw_pictures_and_tasks(tab):
    for source in ("uniform", "training"):
        before = tab.evaluate("state.factors.join()")
        tab.click(f"#{source}")
        assert tab.evaluate("state.factors.join()") != before
    for _ in range(200):  # of which the 137th would round all weights to 0
        tab.evaluate("drawTask()")
        assert tab.evaluate("task.w.some(Boolean)")
    tab.click("#task")
    w = tab.evaluate("task.w")
    assert 1 <= np.count_nonzero(w) <= 6
    told = [float(tab.inner_text(f"#w-told-{k}")) for k in range(6)]
    assert told == pytest.approx(w)
    by_lasso = tab.inner_text("#fits")
    tab.click("input[value=ridge]")
    assert tab.inner_text("#fits") != by_lasso and "6 of 6 not zero" in tab.inner_text("#fits")
    tab.click("input[value=lasso]")
    assert tab.inner_text("#fits") == by_lasso
    tab.evaluate("find('w-0').value = 2; find('w-0').dispatchEvent(new Event('input'))")
    assert tab.evaluate("task.w[0]") == 2 and tab.inner_text("#w-told-0") == "2.0"
    tab.click("#reset")
    assert tab.evaluate("state.factors") == tab.evaluate("FIRST")
    assert tab.evaluate("task.w") == [1.2, 0, 0, -0.7, 0, 0]
    assert tab.input_value("#samples") == "10" and tab.is_checked("input[value=lasso]")


@in_browser
def test_true_weights_are_marked_where_a_feature_would_have_them(tab):
    tab.click("#reset")
    deviation = tab.evaluate(
        "deviation(sampleTask().ids.slice(0, 10).map(id => draws.z[6 * id]))")
    bars = tab.locator("#fits .card").first.locator("svg g")
    marks = bars.evaluate_all("all => all.map(g => Number(g.children[3].getAttribute('x')))")
    reach = tab.evaluate("Math.max(2, ...task.fits.flatMap(({w}) => w.map(Math.abs)))")
    assert marks[0] == pytest.approx(191 + 100 / reach * 1.2 * deviation)
    assert marks[1] == 191 and marks[3] < 191  # 0, and a negative one


@in_browser
def test_a_drag_is_answered_at_once(tab):
    assert drag_milliseconds(tab) < 200  # 50 are wanted, on a machine with nothing else to do


def drag_milliseconds(tab):
    """The median time of 100 drags."""
    script = """() => Array.from({length: 100}, (_, i) => {
        state.factors[i % 6] = i % levels[i % 6];
        show();
        return state.lastDraw;
    })"""
    return np.median(tab.evaluate(script))


ONE = pytest.param(("ten",), marks=pytest.mark.slow)


@in_browser
@pytest.mark.parametrize("names", [ONE, ("lasso", "ten", "ridge")])
@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_any_runs_fit_any_screen(browser, folders, tmp_path, names, width):
    path = tmp_path / "page.html"
    written(folders, path, *names)
    tab = opened(browser, path, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert tab.locator("#features .card").count() == len(names)
    rows = tab.evaluate("state.features.map(own => own.length)")
    assert rows == [10 if name == "ten" else 6 for name in names]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    tab.click("#task")
    assert tab.faults == []
    tab.close()


@in_browser
def test_on_a_phone_picture_sliders_and_bars_are_in_one_view(browser, folders, tmp_path):
    path = tmp_path / "page.html"
    written(folders, path, "lasso", "ridge", "lasso")
    tab = opened(browser, path, viewport={"width": 390, "height": 800})
    boxes = [tab.locator(name).bounding_box() for name in ("#picture", "#factors", "#features")]
    top = min(box["y"] for box in boxes)
    assert max(box["y"] + box["height"] for box in boxes) - top < 600
    tab.close()


@pytest.mark.slow
@in_browser
def test_the_matrix_of_an_unmixed_run_is_shown(browser, folders, tmp_path):
    path = tmp_path / "page.html"
    chosen = [str(folders[name]) for name in ("ridge", "lasso")]
    assert run.main(["page", *chosen, "--unmix", "--out", str(path)]) == 0
    tab = opened(browser, path)
    assert tab.is_visible("#told-matrix") and tab.locator("#scores table").count() == 3
    assert "unmixed" in tab.inner_text("#scores")
    tab.close()


@in_browser
def test_nothing_was_fetched_and_nothing_went_wrong(tab):
    tab.click("summary")
    links = tab.eval_on_selector_all("[data-code]", "all => all.map(e => e.href)")
    assert len(links) == 8 and all(link.endswith(".py") for link in links)      # lines move on
    assert tab.faults == []


@in_browser
def test_a_screen_reader_hears_of_everything(tab):
    unnamed = """() => [...document.querySelectorAll('input, svg, canvas, button')].filter(e =>
        !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim())
        .map(e => e.outerHTML)"""
    assert tab.evaluate(unnamed) == []


if __name__ == "__main__":
    source, out, *more = sys.argv[1:]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        width, height = map(int, more or (1180, 600))
        size = {"width": width, "height": height}
        began = time.perf_counter()
        shown = opened(chromium, page.Path(source).resolve(), viewport=size)
        print(f"opened in {time.perf_counter() - began:.2f} s")
        print(f"a drag takes {drag_milliseconds(shown):.1f} ms")
        shown.evaluate("state.factors = [0, 4, 6, 5, 2, 7]; hold(0)")
        for level in range(10):
            shown.evaluate(f"move(0, {level})")
            time.sleep(0.1)
        wait(shown, "state.curves.levels.length === 10")
        shown.screenshot(path=out)
        print(out, shown.faults)
        chromium.close()


def test_features_are_shown_with_the_sign_and_the_scores_of_uniform_images(folders):
    trained, shapes = page.read_run(folders["lasso"]), data.Shapes3D()
    z, p = data.latents(shapes)
    drawn = page.draw_images(shapes, p)
    own = page.pack_run(trained, shapes, z, drawn)
    F = np.frombuffer(base64.b64decode(own["draws"]), "<f4").reshape(2000, 6)[:1000]
    z = z[drawn[:1000]]
    assert np.corrcoef(z.T)[0, 1] < 0.1
    assert own["mcc"] == pytest.approx(metrics.mcc(z, F), abs=1e-5)
    assert own["r"] == pytest.approx(metrics.r_score(z, F), abs=1e-5)
    for k, j, sign in zip(own["factors"], own["order"], own["sign"], strict=True):
        assert np.corrcoef(z[:, k], sign * F[:, j])[0, 1] == pytest.approx(
            own["correlation"][k][j], abs=1e-5)  # which is positive
    np.testing.assert_allclose(own["mean"], F.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(own["deviation"], F.std(axis=0), rtol=1e-4)


def test_an_unmixed_run_is_of_factors_where_features_are_mixtures(folders, monkeypatch):
    z, _ = data.latents(data.Shapes3D())
    mix = np.random.default_rng(0).standard_normal((6, 6))
    monkeypatch.setattr(page, "SEEN", 2000)
    monkeypatch.setattr(page, "features_on_page", lambda run, params, shapes, index: z[index] @ mix)
    own = page.unmixed(page.read_run(folders["lasso"]))
    rows = np.arange(300) * 1600
    F = z[rows] @ mix
    assert metrics.mcc(z[rows], F) < 0.9
    seen = z[np.random.default_rng(30_001).choice(
        len(z), 2000, p=data.latents(data.Shapes3D())[1])] @ mix
    assert metrics.mcc(z[rows], F / page.deviation_of(seen) @ own.M) > 0.99
